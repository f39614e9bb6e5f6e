"""Metrics, row formats and callbacks of an installed package: those of docs/plugins.md work, wrong ones are named."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from peftcli.inference.metrics import greater_is_better
from peftcli.protocol import registry as registry_module
from peftcli.recipe import entry_points
from peftcli.tasks.metric_table import metrics_of_plugin
from tests.command_line import COLOURS, Cli, Workspace, write_jsonl
from tests.docs.pages import blocks, text_of

ALL = {"data__format": "tickets", "training__metrics": ["cost"], "training__callbacks": ["enough"]}


def page(module: str) -> str:
    """Return the text of a module of docs/plugins.md."""
    shown = re.findall(r"^`(\w+)\.py`:\n\n```python\n(.*?)^```", text_of("docs/plugins.md"), flags=re.M | re.S)
    return dict(shown)[module]


class Site:
    """A folder on the path with packages in it, as pip would leave them."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def install(self, points: str, package: str = "tickets", **modules: str) -> None:
        """Install a package: its modules, and entry points as in entry_points.txt."""
        for name, body in modules.items():
            (self.path / f"{name}.py").write_text(body, encoding="utf-8")
            sys.modules.pop(name, None)
        metadata = self.path / f"{package}-1.0.dist-info"
        metadata.mkdir(exist_ok=True)
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n", encoding="utf-8")
        (metadata / "entry_points.txt").write_text(points, encoding="utf-8")
        entry_points._read.cache_clear()

    def install_page(self, **changed: str) -> None:
        """Install what docs/plugins.md shows, modules with `changed` text in place of their own."""
        modules = {name: page(name) for name in ("ticket_cost", "ticket_rows", "ticket_watch")}
        (points,) = blocks("docs/plugins.md", "toml")
        entries = points.replace('[project.entry-points."', "[").replace('"]', "]").replace('"', "")
        self.install(entries, **{**modules, **changed})


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    before = set(sys.modules)
    yield Site(folder)
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(folder)):
            del sys.modules[name]
    entry_points._read.cache_clear()
    registry_module._find.cache_clear()


@pytest.fixture
def tickets(workspace: Workspace, tmp_path: Path) -> Path:
    rows = [
        {"title": f"the {word} one", "body": f"story {number}", "queue": label}
        for number in range(20)
        for label, word in COLOURS.items()
    ]
    return write_jsonl(tmp_path / "tickets.jsonl", rows)


def said(text: str) -> str:
    return " ".join(text.split())


def test_a_recipe_uses_a_metric_a_format_and_a_callback(
    cli: Cli, workspace: Workspace, site: Site, tickets: Path
) -> None:
    site.install_page()
    best = {"training__metric_for_best_model": "eval_cost", "training__eval_steps": 4, "training__learning_rate": 0.03}
    recipe = workspace.recipe("tickets", **ALL, **best, data__path=str(tickets), training__num_train_epochs=100)
    assert cli("validate", recipe).code == 0
    done = cli("train", recipe, "--json", "--quiet")
    assert done.code == 0, done.err
    after = done.json["eval"]
    assert after["eval_cost"] == pytest.approx(5.0 * (1 - after["eval_accuracy"]))
    assert after["eval_accuracy"] >= 0.99  # it is the smallest cost that was kept
    assert (done.json["status"], done.json["data"]["format"]) == ("early_stopped", "tickets")
    run = workspace.run("tickets")
    diary = (run / "logs" / "diary.txt").read_text().splitlines()
    assert diary[0] == "begin 0 of 400"
    assert diary[1] == "step 1"
    assert diary[-2:] == [f"evaluation {done.json['steps']}", "end early_stopped"]
    assert done.json["steps"] < 400
    assert cli("eval", run, "--json").json["eval_cost"] == pytest.approx(after["eval_cost"])
    unlabelled = write_jsonl(tickets.parent / "new.jsonl", [{"title": "the red one", "body": ""}])
    predicted = cli("predict", run, "--input", unlabelled)
    assert predicted.code == 0, predicted.err
    assert json.loads(predicted.out)["prediction"] == "warm"


def test_the_direction_of_a_metric_is_that_of_the_plug_in(site: Site) -> None:
    rises = 'from peftcli.tasks.metric_table import MetricInfo\nMETRIC = {"regression": MetricInfo("", len)}'
    site.install(
        "[peftcli.metrics]\ncost = ticket_cost\nnot_rmse = rises", rises=rises, ticket_cost=page("ticket_cost")
    )
    assert [greater_is_better(f"eval_{name}") for name in ("cost", "news_cost", "not_rmse", "accuracy", "a_rmse")] == [
        False, False, True, True, False,
    ]  # fmt: skip


def test_a_metric_of_a_plug_in_may_be_a_number_of_numpy(site: Site) -> None:
    small = (
        "import numpy as np\nfrom peftcli.tasks.metric_table import MetricInfo\n"
        'METRIC = {"regression": MetricInfo("", lambda p, _: {"small": np.float32(len(p))})}'
    )
    site.install("[peftcli.metrics]\nsmall = small_numbers", small_numbers=small)
    function = metrics_of_plugin("small")["regression"].function
    assert function is not None
    value = function([1.0], [1.0])["small"]
    assert type(value) is float and value == 1.0


def test_rows_are_prepared_again_when_the_format_s_module_changes(
    cli: Cli, workspace: Workspace, site: Site, tickets: Path
) -> None:
    cache = str(tickets.parent / "cache")
    recipe = workspace.recipe("again", data__format="tickets", data__path=str(tickets), data__cache_dir=cache)
    found = []
    for suffix in ("", "", "!"):
        body = page("ticket_rows").replace("'subject')}", f"'subject')}}{suffix}")
        site.install_page(ticket_rows=body)
        found.append(cli("inspect", recipe, "--json").json)
    assert [one["report"]["cache"] for one in found] == ["miss", "hit", "miss"]
    assert found[0]["examples"] == found[1]["examples"] != found[2]["examples"]


@pytest.mark.parametrize(
    ("module", "body", "reason"),
    [
        (
            "ticket_cost",
            "import a_package_that_is_not_here",
            "cannot be imported: No module named 'a_package_that_is_not",
        ),
        ("ticket_cost", "METRIC = 1 / 0", "cannot be imported: ZeroDivisionError: division by zero ("),
        ("ticket_cost", "METRIC = {'single_label': len}", "ends in no METRIC that is a mapping"),
        ("ticket_rows", "FORMAT = {}", "ends in no FORMAT that is a RowFormat"),
        ("ticket_watch", "CALLBACK = print", "ends in no CALLBACK that is a subclass of"),
    ],
)
def test_a_broken_plug_in_is_named_before_anything_is_loaded(
    cli: Cli, workspace: Workspace, site: Site, tickets: Path, module: str, body: str, reason: str
) -> None:
    site.install_page(**{module: body})
    for arguments in (["validate", workspace.recipe("broken", **ALL, data__path=str(tickets))], ["plugins"]):
        done = cli(*arguments)
        assert (done.code, "Traceback" in done.err) == (2, False)
        assert f"the plug-in {module} of the package tickets 1.0, which offers the" in said(done.err)
        assert reason in said(done.err)


@pytest.mark.parametrize(
    ("module", "old", "new", "reason"),
    [
        ("ticket_cost", '"cost": COST', '"price": COST', "returned {'price':"),
        ("ticket_cost", "wrong = sum(", "wrong = 1 / 0 + sum(", "failed: ZeroDivisionError: division by zero ("),
        ("ticket_rows", "return [Labelled(", "return (Labelled(", "expected a list of examples"),
        ("ticket_rows", "return [Labelled(", "return [values['nothing'], Labelled(", "failed: KeyError: 'nothing' ("),
    ],
)
def test_a_plug_in_that_fails_in_a_run_is_named(
    cli: Cli, workspace: Workspace, site: Site, tickets: Path, module: str, old: str, new: str, reason: str
) -> None:
    body = page(module).replace(old, new)
    site.install_page(**{module: body.replace('"queue"))]', '"queue")),)') if "(Labelled(" in new else body})
    done = cli("train", workspace.recipe("fails", **ALL, data__path=str(tickets)), "--quiet", "--overwrite")
    assert (done.code, "Traceback" in done.err) == (2, False)
    assert "of the package tickets 1.0" in said(done.err)
    assert reason in said(done.err)


def test_a_callback_that_fails_ends_no_run(cli: Cli, workspace: Workspace, site: Site, tickets: Path) -> None:
    site.install_page(ticket_watch=page("ticket_watch").replace('metrics["eval_accuracy"]', 'metrics["nothing"]'))
    done = cli("train", workspace.recipe("note", **ALL, data__path=str(tickets)), "--overwrite")
    assert done.code == 0, done.err
    assert said(done.err).count("the callback enough failed and is not called again in this run (KeyError") == 1


def test_names_of_ours_and_names_offered_twice_are_refused(cli: Cli, workspace: Workspace, site: Site) -> None:
    for kind, name in (("metric", "accuracy"), ("format", "messages"), ("method", "lora")):
        site.install(f"[peftcli.{kind}s]\n{name} = ticket_cost", ticket_cost=page("ticket_cost"))
        done = cli("plugins")
        assert done.code == 2
        assert f"which offers the {kind} {name!r}, takes a name of peftcli's own" in said(done.err)
    site.install("[peftcli.metrics]\naccuracy = ticket_cost\ncost = ticket_cost")
    done = cli("validate", workspace.recipe("clash", training__metrics=["cost"]))
    assert (done.code, "takes a name of peftcli's own" in said(done.err)) == (2, True)
    site.install("[peftcli.metrics]\ncost = ticket_cost")
    site.install("[peftcli.metrics]\ncost = ticket_cost", package="other")
    done = cli("validate", workspace.recipe("twice", training__metrics=["cost"]))
    assert "several packages offer the metric 'cost': other 1.0, tickets 1.0" in said(done.err)


def test_what_is_installed_is_listed(cli: Cli, site: Site) -> None:
    assert "docs/plugins.md" in cli("plugins").out
    site.install_page()
    done = cli("plugins", "--json")
    assert [(one["kind"], one["name"], one["package"], one["problem"]) for one in done.json] == [
        ("metric", "cost", "tickets 1.0", None),
        ("format", "tickets", "tickets 1.0", None),
        ("callback", "enough", "tickets 1.0", None),
    ]
    assert "tickets 1.0" in cli("plugins").out


def test_names_that_nobody_offers_have_the_remedy(cli: Cli, workspace: Workspace, site: Site) -> None:
    changes = {"data__format": "mesages", "training__metrics": ["acuracy"], "training__callbacks": ["enough"]}
    done = cli("validate", workspace.recipe("nobody", **changes))
    assert done.code == 2
    for part in (
        "data.format",
        "messages",
        "accuracy",
        "no installed package offers a callback 'enough'",
        "peft plugins",
    ):
        assert part in said(done.err)


def test_nothing_is_looked_up_for_names_of_ours(
    cli: Cli, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entry_points, "entry_points", None)  # a call would fail
    entry_points._read.cache_clear()
    changes = {"data__format": "classification", "training__metrics": ["f1"], "training__max_steps": 1}
    assert (
        cli("train", workspace.recipe("ours", **changes, training__metric_for_best_model="eval_mcc"), "--quiet").code
        == 0
    )
    assert cli("methods").code == cli("schema").code == 0
