"""One worker: results are those of `peft train`, how trials end, what is not done again, and what a stop leaves."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from peftcli.names import NAMES
from peftcli.recipe.load_recipe import load_recipe
from peftcli.record.run_directory import RunDirectory
from peftcli.studies.engine.process.machine_share import MachineShare
from peftcli.studies.engine.process.train_trial import train_trial
from peftcli.studies.engine.process.trial_job import job_of
from peftcli.studies.engine.process.trial_outcome import Outcome, Ready, TrialJob
from peftcli.studies.engine.study import Study
from peftcli.studies.engine.study_files import StudyFiles
from peftcli.studies.engine.trial import CurvePoint, Trial
from peftcli.training.run import train
from tests.studies.engine.small_study import ASKED, Remembers, adapter_bytes, write_recipe

EVALUATED = {"data__val_set_size": 4, "training__max_steps": 4, "training__eval_steps": 2}

WILD = ("method={name: full}", "training.optim=sgd", "training.max_grad_norm=0", "training.learning_rate=100.0",
        "training.max_steps=20", "data.val_set_size=0")  # fmt: skip
"""Weights overflow before the last step."""


class StopsAt:
    """Stops the trials of a name after the evaluation of a step."""

    def __init__(self, name: str, step: int) -> None:
        self.name, self.step = name, step
        self.curves: dict[str, list[int]] = {}

    def should_stop(self, trial: Trial, curve: Sequence[CurvePoint]) -> bool:
        self.curves[trial.name] = [point.step for point in curve]
        return trial.name == self.name and curve[-1].step == self.step


def test_trials_are_not_pushed_to_the_repository_that_their_recipe_names(tmp_path: Path, recipe) -> None:
    small = write_recipe(tmp_path, recipe(training__push_to_hub="me/adapter"))
    job = job_of(Trial("a", small), StudyFiles(tmp_path), MachineShare(), asks=False)
    assert load_recipe(Path(job.recipe), job.changes, NAMES).recipe.training.push_to_hub is None


def test_trials_end_as_peft_train_does_and_are_not_trained_again(tmp_path: Path, recipe: Callable[..., Any]) -> None:
    loaded = recipe(**EVALUATED)
    directory = tmp_path / "study"
    small = write_recipe(directory, loaded)
    trials = [
        Trial("warm", small),
        Trial("fresh", small, fresh=True, score_rows=True),
        Trial("early", small, ("training.max_steps=6",)),
        Trial("diverged", small, WILD),
        Trial("refused", small, ("method.target_modules=[nope]",)),
    ]
    study, watch, stops = Study.open(directory, ASKED), Remembers(), StopsAt("early", 2)
    results = study.run(trials, jobs=2, watch=watch, stop_early=stops)
    assert [result.name for result in results] == [trial.name for trial in trials]
    assert [result.state for result in results] == ["finished", "finished", "stopped", "diverged", "refused"]
    warm, fresh, early, diverged, refused = results
    assert refused.reason is not None and "no module is named 'nope'" in refused.reason
    assert diverged.reason is not None and "is not finite" in diverged.reason

    summary = train(loaded)
    assert adapter_bytes(directory / "trials/warm") == adapter_bytes(Path(loaded.recipe.output_dir))
    assert adapter_bytes(directory / "trials/fresh") == adapter_bytes(Path(loaded.recipe.output_dir))
    assert summary.eval is not None and warm.summary["eval"]["eval_loss"] == summary.eval["eval_loss"]
    assert [point.step for point in warm.curve] == [0, 2, 4] == stops.curves["warm"][:3]
    assert warm.peak_memory_bytes is None and (fresh.peak_memory_bytes or 0) > 10**8
    assert (directory / "scores/fresh.json").is_file() and not (directory / "scores/warm.json").exists()

    assert [point.step for point in early.curve] == [0, 2] and early.reason == "stopped by the study after step 2"
    assert RunDirectory(directory / "trials/early").checkpoints().steps() == [2]
    states = {trial.user_attrs["name"]: trial.state.name for trial in study.optuna.trials}
    assert states == {"warm": "COMPLETE", "fresh": "COMPLETE", "early": "PRUNED", "diverged": "PRUNED",
                      "refused": "FAIL"}  # fmt: skip

    again = Remembers()
    assert Study.open(directory, ASKED).run(trials, jobs=1, watch=again) == results
    assert again.of("started") == [] and len(again.of("ended")) == len(trials)
    assert list((directory / "leases").iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="processes are killed by signals")
def test_a_trial_whose_process_is_killed_again_and_again_has_failed(tmp_path: Path, recipe: Callable[..., Any]) -> None:
    directory = tmp_path / "study"
    trial = Trial("a", write_recipe(directory, recipe(**EVALUATED)))

    class Kills(Remembers):
        def started(self, trial: Trial) -> None:
            super().started(trial)
            for child in multiprocessing.active_children():
                child.kill()

    watch = Kills()
    (result,) = Study.open(directory, ASKED).run([trial], jobs=1, watch=watch)
    assert result.state == "failed" and result.reason is not None and "was killed 3 times" in result.reason
    assert watch.of("started") == ["a"] * 3


def test_an_error_of_a_watcher_leaves_no_process_behind(tmp_path: Path, recipe: Callable[..., Any]) -> None:
    directory = tmp_path / "study"
    trial = Trial("a", write_recipe(directory, recipe(**EVALUATED)))

    class Breaks(Remembers):
        def evaluated(self, trial: Trial, point: CurvePoint) -> None:
            if point.step == 2:
                raise BrokenPipeError("nobody reads")

    with pytest.raises(BrokenPipeError):
        Study.open(directory, ASKED).run([trial], jobs=1, watch=Breaks(), stop_early=StopsAt("none", 0))
    assert multiprocessing.active_children() == []
    watch = Remembers()
    (result,) = Study.open(directory, ASKED).run([trial], jobs=1, watch=watch)
    assert result.state == "finished" and watch.of("note") == ["a is continued"]


def test_an_error_of_ours_is_kept_with_its_text(tmp_path: Path, recipe: Callable[..., Any]) -> None:
    log = tmp_path / "a.log"
    job = TrialJob(recipe().path, (), str(tmp_path / "run"), None, str(log), dict(os.environ), threads=0, asks=False)
    context = multiprocessing.get_context("spawn")
    own, its = context.Pipe()
    process = context.Process(target=train_trial, args=(job, its))
    process.start()
    assert own.recv() == Ready()
    outcome = own.recv()
    process.join()
    assert isinstance(outcome, Outcome) and outcome.state == "failed"
    assert outcome.reason is not None and outcome.reason.startswith("RuntimeError: ")
    assert "Traceback" in log.read_text() and "set_num_threads" in log.read_text()
