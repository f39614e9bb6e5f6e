"""`peft runs`: every run below a directory is a line, whatever state it is in and whatever is broken about it."""

from __future__ import annotations

import json
import os
import platform
import shutil
from pathlib import Path

import pytest
import yaml

from peftcli.errors import Stopped, UserError
from peftcli.names import NAMES
from peftcli.recipe.load_recipe import load_recipe
from peftcli.record.listing.failure import FAILURE
from peftcli.record.listing.find_runs import find_runs
from peftcli.record.listing.run_entry import RunEntry
from peftcli.training.run import train
from tests.recipes import CtrlC, Recorder, class_rows, recipes_in


class _Broken(Recorder):
    """Fails at the first step, as a full memory or a bug would."""

    def step(self, record) -> None:
        raise RuntimeError("something broke\nwith details")


@pytest.fixture(scope="module")
def trained(models, tmp_path_factory) -> Path:
    """Return a directory with a finished run, an interrupted one, and one that an error ended."""
    folder = tmp_path_factory.mktemp("list")
    make = recipes_in(folder, models)
    asked = {"training__max_steps": 2, "training__save_steps": 1, "training__eval_steps": 1, "data__val_set_size": 4}
    shared = ("bert", "sequence_classification", class_rows(24))
    train(make(*shared, **asked, output_dir=str(folder / "runs/done")))
    with pytest.raises(Stopped):
        train(make(*shared, **asked, output_dir=str(folder / "runs/deep/cut")), reporter=CtrlC(1))
    with pytest.raises(RuntimeError):
        train(make(*shared, **asked, output_dir=str(folder / "runs/failed")), reporter=_Broken())
    return folder / "runs"


@pytest.fixture
def home(trained: Path, tmp_path: Path) -> Path:
    """Return a copy of these runs."""
    return shutil.copytree(trained, tmp_path / "runs")


def states(directory: Path) -> dict[str, str]:
    return {str(Path(run.path).relative_to(directory)): run.state for run in find_runs(directory)[0]}


def entry(directory: Path, name: str) -> RunEntry:
    return next(run for run in find_runs(directory)[0] if run.path == str(directory / name))


def test_each_run_has_its_state(home: Path) -> None:
    assert states(home) == {"done": "finished", "deep/cut": "interrupted", "failed": "failed"}
    done, cut = entry(home, "done"), entry(home, "deep/cut")
    assert (done.method, done.task, done.metric, done.steps) == ("lora", "sequence_classification", "eval_accuracy", 2)
    summary = json.loads((home / "done/summary.json").read_text())
    assert done.score == summary["eval"]["eval_accuracy"] and done.trained == summary["trainable"]
    assert done.size == sum(file.stat().st_size for file in (home / "done").rglob("*") if file.is_file())
    assert (cut.step, cut.steps, cut.method) == (1, 2, "lora") and cut.score is not None
    assert entry(home, "failed").reason == "something broke"

    os.utime(home / "deep/cut/metrics.jsonl", (4e9, 4e9))
    assert find_runs(home)[0][0].path == str(home / "deep/cut")  # the newest first


def test_a_run_is_running_while_its_process_lives(home: Path) -> None:
    holder = home / "deep/cut/.lock_holder"
    holder.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
    assert entry(home, "deep/cut").state == "running"
    os.utime(holder, (1.0, 1.0))  # the process of this number began after the note was written: it is another one
    if Path("/proc/self").exists():
        assert entry(home, "deep/cut").state == "interrupted"
    holder.write_text(f"process {2**22 + 1} on {platform.node()}", encoding="utf-8")
    assert entry(home, "deep/cut").state == "interrupted"
    holder.write_text("process 1 on another-machine", encoding="utf-8")
    assert entry(home, "deep/cut").state == "running" and "cannot be asked" in str(entry(home, "deep/cut").reason)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("recipe.yaml", None), ("recipe.yaml", b"{"), ("recipe.yaml", b"- a"), ("recipe.yaml", b"\xff\xfe\x00"),
        ("summary.json", b"{"), ("summary.json", b'{"status": 3}'), ("summary.json", b"\xff"), ("adapter", None),
    ],
)  # fmt: skip
def test_a_broken_run_is_a_line(home: Path, file: str, content: bytes | None) -> None:
    broken = home / "done" / file
    if content is not None:
        broken.write_bytes(content)
    elif broken.is_dir():
        shutil.rmtree(broken)
    else:
        broken.unlink()
    assert states(home) == {"done": "damaged", "deep/cut": "interrupted", "failed": "failed"}
    assert file in str(entry(home, "done").reason)


@pytest.mark.parametrize("value", [5, [1], {"a": 1}])
def test_a_metric_that_is_no_name_is_no_error(home: Path, value: object) -> None:
    for name in ("done", "deep/cut"):
        file = home / name / "recipe.yaml"
        recipe = yaml.safe_load(file.read_text(encoding="utf-8"))
        recipe["training"]["metric_for_best_model"] = value
        file.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    assert entry(home, "done").metric == entry(home, "deep/cut").metric == "eval_accuracy"


def test_a_study_is_one_line_and_its_trials_are_listed_when_it_is_named(home: Path) -> None:
    study = home / "study"
    (study / "results").mkdir(parents=True)
    (study / "study.json").write_text("{}")
    shutil.copytree(home / "done", study / "trials/t1")
    (study / "results/t1.json").write_text("{}")
    runs, studies = find_runs(home)
    assert len(runs) == 3 and [(one.path, one.trials, one.ended) for one in studies] == [(str(study), 1, 1)]
    assert states(study) == {"trials/t1": "finished"}


def test_other_directories_are_no_runs(tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "project/recipe.yaml").write_text("task: causal_lm\n")
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert find_runs(tmp_path) == ([], [])
    with pytest.raises(UserError, match="does not exist"):
        find_runs(tmp_path / "nowhere")


def test_an_error_is_forgotten_when_the_run_goes_on(trained: Path, home: Path) -> None:
    train(load_recipe(trained / "failed/recipe.yaml", [], NAMES), resume=True)
    assert states(trained)["failed"] == "finished" and not (trained / "failed" / FAILURE).exists()
    assert states(home)["failed"] == "failed"
