"""`peft sweep` on a tiny model from beginning to end: grids, searches, stops, several workers, failing points."""

from __future__ import annotations

import html
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from peftcli.errors import Stopped
from peftcli.names import NAMES
from peftcli.recipe.load_recipe import load_recipe
from peftcli.studies.engine.trial import CurvePoint, Trial, TrialResult
from peftcli.studies.sweep.run_settings import RunSettings
from peftcli.studies.sweep.run_sweep import run_sweep
from peftcli.studies.sweep.sweep_request import SweepOptions, prepare_sweep
from tests.command_line import Cli, Workspace, cli, workspace

__all__ = ["cli", "workspace"]

SHORT = ("training.max_steps=3", "training.eval_strategy=steps", "training.eval_steps=1", "training.save_strategy=no")


class Silent:
    """A watcher of a sweep; presses Ctrl-C when the trial of this number has ended."""

    def __init__(self, stop_after: int = 0) -> None:
        self.ended_trials = 0
        self._stop_after = stop_after

    def phase(self, title: str, trials: int, seconds: float | None) -> None: ...

    def started(self, trial: Trial) -> None: ...

    def progressed(self, trial: Trial, step: int, total_steps: int) -> None: ...

    def evaluated(self, trial: Trial, point: CurvePoint) -> None: ...

    def note(self, text: str) -> None: ...

    def ended(self, trial: Trial, result: TrialResult) -> None:
        self.ended_trials += 1
        if self.ended_trials == self._stop_after:
            os.kill(os.getpid(), signal.SIGINT)


def test_the_rank_question_has_an_answer_of_one_line(cli: Cli, workspace: Workspace, tmp_path: Path) -> None:
    recipe = workspace.recipe("rank")
    asked = ("sweep", recipe, *SHORT, "--grid", "method.r=2,8", "--seeds", "2", "-o", tmp_path / "study")
    first = cli(*asked, "--json", "--quiet")
    assert first.code == 0 and first.err.strip() == "", first.err
    record = first.json
    assert record == json.loads((tmp_path / "study" / "sweep.json").read_text(encoding="utf-8"))
    assert [trial["values"] for trial in record["trials"]] == [{"method.r": 2}, {"method.r": 8}]
    assert all(trial["state"] == "finished" and len(trial["curve"]) == 3 for trial in record["trials"])
    # every value was trained on fresh seeds, and the score of these is the result, not that of the search
    assert [winner["seeds"] for winner in record["winners"]] == [[1, 2], [1, 2]] and record["seed"] == 0
    best = record["best"]
    assert best["score"] == pytest.approx(sum(best["scores"]) / 2)
    assert best["interval"][0] <= best["score"] <= best["interval"][1]
    assert best["score"] not in [trial["score"] for trial in record["trials"]]
    assert record["answer"].startswith("the smallest method.r that ties with the best is 2 (eval_loss ")
    assert any("lora_alpha stays 16" in note for note in record["notes"])
    assert record["rows"] == 10
    # both runs of a seed held out the same rows; the best recipe can be trained and says why
    written = load_recipe(tmp_path / "study" / "best.yaml", [], NAMES).recipe
    assert written.as_dict()["method"]["r"] == best["values"]["method.r"]
    assert written.data is not None and written.data.split_seed == 0 and written.seed == 0
    text = (tmp_path / "study" / "best.yaml").read_text(encoding="utf-8")
    assert text.startswith("# The best of peft") and "2 fresh seeds (1, 2)" in text
    assert html.escape(record["answer"][1:]) in (tmp_path / "study" / "report.html").read_text(encoding="utf-8")
    results = {file: file.stat().st_mtime_ns for file in (tmp_path / "study" / "results").iterdir()}
    again = cli(*asked)
    assert again.code == 0 and record["answer"] in again.out and "not the result" in again.out
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "study" / "results").iterdir()} == results
    other = cli("sweep", recipe, "training.max_steps=4", "--grid", "method.r=2,8", "-o", tmp_path / "study")
    assert other.code == 2 and "other settings" in other.err and "max_steps" in other.err


def test_a_point_that_fails_is_a_row_with_its_reason(cli: Cli, workspace: Workspace, tmp_path: Path) -> None:
    done = cli(
        "sweep", workspace.recipe("fails"), *SHORT, "--grid", "method.target_modules=[attn.q],[nowhere]",
        "--seeds", "1", "-o", tmp_path / "study", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    good, bad = done.json["trials"]
    assert good["state"] == "finished" and bad["state"] == "refused" and "nowhere" in bad["reason"]
    assert done.json["best"]["values"] == {"method.target_modules": ["attn.q"]}
    assert "1 of 2 trials was refused" in done.json["notes"]
    none = cli(
        "sweep", workspace.recipe("fails"), *SHORT, "--grid", "method.target_modules=[nowhere]", "-o", tmp_path / "none"
    )
    assert none.code == 2 and "no trial has a result" in none.err and "nowhere" in none.err


def test_a_search_that_was_stopped_goes_on_and_prunes(workspace: Workspace, tmp_path: Path) -> None:
    options = SweepOptions(
        search=("training.learning_rate=log:1e-6..1e-1",), trials=7, pruner="median", seeds=1, winners=1
    )
    request = prepare_sweep(workspace.recipe("search"), SHORT, options, NAMES)
    settings = RunSettings(tmp_path / "study")
    with pytest.raises(Stopped, match="The same command continues"):
        run_sweep(request, settings, Silent(stop_after=2))
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "study" / "results").glob("*.json")}
    assert len(before) == 2
    sweep = run_sweep(request, settings, Silent())
    assert {file: file.stat().st_mtime_ns for file in before} == before  # what had ended was not trained again
    assert len(sweep.trials) == 7 and [trial.number for trial in sweep.trials] == list(range(7))
    states = [trial.state for trial in sweep.trials]
    assert states[:4] == ["finished"] * 4 and "stopped" in states and set(states) == {"finished", "stopped"}
    stopped = next(trial for trial in sweep.trials if trial.state == "stopped")
    assert len(stopped.curve) < 3
    best = min((trial for trial in sweep.trials if trial.state == "finished"), key=lambda trial: trial.score or 9)
    assert sweep.best is not None and sweep.best.values == best.values and sweep.best.seeds == [1]
    rates = [trial.values["training.learning_rate"] for trial in sweep.trials]
    assert all(1e-6 <= rate <= 1e-1 for rate in rates) and len(set(rates)) == 7


@pytest.mark.slow  # two more processes that import torch
def test_two_shells_share_a_search(workspace: Workspace, tmp_path: Path) -> None:
    arguments = [
        "sweep", str(workspace.recipe("shared")), *SHORT, "--search", "method.r=2..32", "--sampler", "random",
        "--trials", "5", "--seeds", "1", "--winners", "1", "-o", str(tmp_path / "study"),
    ]  # fmt: skip
    shells = [
        subprocess.Popen([sys.executable, "-m", "peftcli", *arguments], stderr=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    ended = [shell.communicate(timeout=500) for shell in shells]
    assert [shell.returncode for shell in shells] == [0, 0], ended
    record = json.loads((tmp_path / "study" / "sweep.json").read_text(encoding="utf-8"))
    assert len(record["trials"]) == 5 and all(trial["state"] == "finished" for trial in record["trials"])
    assert len({trial["values"]["method.r"] for trial in record["trials"]}) == 5  # one seed, yet different draws
    assert len(list((tmp_path / "study" / "results").glob("*.json"))) == 6
