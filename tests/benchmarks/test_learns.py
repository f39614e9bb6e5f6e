"""Every method learns at its default learning rate: what was measured, and (slow) measuring it again."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from peftcli.names import NAMES
from peftcli.protocol.registry import registry
from peftcli.recipe.load_recipe import load_recipe

ROOT = Path(__file__).resolve().parent.parent.parent
ROW = re.compile(
    r"^\| `(?P<name>\w+)` \| \w+ \| [\d.]+% \| (?P<saved>[\d,]+) \| (?P<rate>\S+) \| "
    r"(?P<loss>[\d.]+ \([\d.]+ to [\d.]+\)) \| (?P<accuracy>[\d.]+%) \|",
    flags=re.M,
)
"""A line of README's table of methods, up to what was measured."""


def _script() -> ModuleType:
    """Return benchmarks/learns.py, which no package holds."""
    spec = importlib.util.spec_from_file_location("learns", ROOT / "benchmarks" / "learns.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["learns"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


learns = _script()


def test_the_committed_runs_are_of_the_present_defaults() -> None:
    runs = learns.read()
    assert [case for case in learns.planned() if learns.found(case, runs) is None] == []
    assert len(runs) == len(learns.planned()) == 3 * (len(registry.names()) + len(learns.HEAD_RATES))
    assert {run["seed"] for run in runs} == {0, 1, 2}


def test_the_committed_runs_bear_out_the_claims() -> None:
    rows = learns.rows(learns.read())
    assert [row.method for row in rows] == [learns.HEAD, *registry.names()]
    assert learns.broken(rows) == []


def test_readme_reports_what_was_measured() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    head, *rows = learns.rows(learns.read())
    printed = {match["name"]: match for match in ROW.finditer(readme)}
    assert list(printed) == [row.method for row in rows]
    for row in rows:
        shown = printed[row.method]
        assert (shown["rate"], shown["loss"], shown["accuracy"]) == row.shown[:3], row.method
        if row.method != "adalora":  # which matrices keep their ranks differs from run to run
            assert shown["saved"] == row.shown[3], row.method
    rate, loss, accuracy, _ = head.shown
    prose = " ".join(readme.split())
    assert f"only the classifier trained, at its best learning rate of {rate}): {loss} and {accuracy}" in prose
    for run in {
        (each["versions"]["torch"], each["versions"]["transformers"], each["machine"]) for each in learns.read()
    }:
        assert all(part.partition("+")[0] in prose for part in run), run  # methods that came later: on another machine


def test_configs_are_what_was_measured() -> None:
    """README's sizes are those of configs/, its losses those of the bare method: the same thing."""
    for name in registry.names():
        method = load_recipe(ROOT / "configs" / f"{name}.yaml", [], NAMES).recipe.method
        bare = learns.Case(name, 1.0, 0).recipe["method"]
        assert method == registry.info(name).params.model_validate(bare), name


def test_claims_are_refused_where_they_do_not_hold() -> None:
    head = learns.Row(learns.HEAD, 0.03, (0.50, 0.52, 0.54), 0.9, 5, 0, 100)

    def with_losses(method: str, *losses: float) -> list[str]:
        return learns.broken([head, learns.Row(method, 0.01, losses, 0.9, 5, 5, 100)])

    assert with_losses("ia3", 0.54, 0.55, 0.56) == []  # within the spread of 0.04
    assert "worse" in with_losses("ia3", 0.56, 0.57, 0.58)[0]
    assert with_losses("lora", 0.44, 0.45, 0.46) == []
    assert "not clearly lower" in with_losses("lora", 0.47, 0.47, 0.47)[0]  # less than a tenth
    assert "not clearly lower" in with_losses("lora", 0.30, 0.40, 0.50)[0]  # less than the spread


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_every_method_learns(tmp_path: Path) -> None:
    results = tmp_path / "learns.json"
    learns.run(learns.planned(), results, processes=os.cpu_count() or 1)
    rows = learns.rows(learns.read(results))
    assert [row.method for row in rows] == [learns.HEAD, *registry.names()]
    assert learns.broken(rows) == []
