"""Trackers: their own variables of the environment win over the run directory's name; a resumed run goes on in them."""

from __future__ import annotations

import shutil
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from peftcli.errors import Stopped, UserError
from peftcli.training.run import train
from peftcli.training.watch.trackers import IDS, Earlier, Trackers
from tests.recipes import CtrlC


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Stand in for the package wandb, which is not installed: what `wandb.init` is called with, then what is logged."""
    calls: list[dict[str, Any]] = []
    module = ModuleType("wandb")
    config = SimpleNamespace(update=lambda *_args, **_kwargs: None)
    run = SimpleNamespace(
        id="abc", finish=lambda: None, log=lambda values, step: calls.append({**values, "step": step})
    )
    vars(module).update(init=lambda **kwargs: calls.append(kwargs) or run, config=config)
    module.__spec__ = ModuleSpec("wandb", None)
    monkeypatch.setitem(sys.modules, "wandb", module)
    for name in ("WANDB_PROJECT", "WANDB_NAME"):
        monkeypatch.delenv(name, raising=False)
    return calls


@pytest.mark.parametrize(
    ("variables", "given"),
    [
        ({}, {"project": "exp", "name": "exp"}),
        ({"WANDB_PROJECT": "mine"}, {"project": "mine", "name": "exp"}),
        ({"WANDB_PROJECT": "mine", "WANDB_NAME": "first"}, {"project": "mine"}),
    ],
)
def test_wandb_variables_win(started, monkeypatch, tmp_path: Path, variables: dict, given: dict) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with Trackers(["wandb"], tmp_path / "exp", {"seed": 1}).running():
        pass
    assert started == [given]


LINES = [{"step": step, "loss": float(step)} for step in (1, 2, 3)] + [{"step": 3, "eval_loss": 0.5}]


def test_a_resumed_run_goes_on_with_the_old_one_and_shows_each_step_once(started, tmp_path: Path) -> None:
    run, notes = tmp_path / "exp", list[str]()
    with Trackers(["wandb"], run, {}).running():
        pass
    started.clear()
    again = Trackers(["wandb"], run, {}, Earlier(1, LINES), notes.append)
    with again.running():
        for line in [*LINES[1:], {"step": 4, "loss": 4.0}]:
            again.log(line)
    assert started == [{"project": "exp", "name": "exp", "id": "abc", "resume": "allow"}, {"loss": 4.0, "step": 4}]
    assert notes == []


def test_a_run_whose_id_is_lost_is_said_to_be_shown_as_a_new_one(started, tmp_path: Path) -> None:
    run, notes = tmp_path / "exp", list[str]()
    again = Trackers(["wandb"], run, {}, Earlier(1, LINES), notes.append)
    with again.running():
        again.log(LINES[1])
    assert started == [{"project": "exp", "name": "exp"}, {"loss": 2.0, "step": 2}]
    assert ["as a new one" in note for note in notes] == [True]
    (run / IDS).write_text("{")
    with Trackers(["wandb"], run, {}, Earlier(1, LINES), notes.append).running():
        pass
    assert any(str(run / IDS) in note for note in notes[1:])


def test_tensorboard_shows_each_step_of_a_resumed_run_once(recipe) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    loaded = recipe(training__max_steps=6, training__report_to=["tensorboard"], training__save_steps=2)
    out = Path(loaded.recipe.output_dir)
    with pytest.raises(Stopped):
        train(loaded, reporter=CtrlC(5))
    shutil.rmtree(out / "checkpoints" / "step-000005")  # as after a kill: steps 5 and 6 are taken from step 4 on
    train(loaded, resume=True)
    shown = EventAccumulator(str(out / "logs" / out.name))
    shown.Reload()
    assert [event.step for event in shown.Scalars("loss")] == [1, 2, 3, 4, 5, 6]


def test_a_tracker_that_fails_ends_no_training(started, monkeypatch, recipe, recorder) -> None:
    def full(self: Any, values: Any, step: int | None = None, **_words: Any) -> None:
        if step == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("accelerate.tracking.TensorBoardTracker.log", full)
    loaded = recipe(training__max_steps=4, training__report_to=["tensorboard", "wandb"])
    assert train(loaded, reporter=recorder).steps == 4
    (note,) = [text for text in recorder.notes if "tensorboard failed" in text]
    assert "No space left on device" in note and "metrics.jsonl has all of it" in note
    assert [call["step"] for call in started if "loss" in call] == [1, 2, 3, 4]


def test_a_tracker_that_cannot_be_started_is_named_before_the_first_step(started, monkeypatch, recipe) -> None:
    monkeypatch.setattr(sys.modules["wandb"], "init", lambda **_words: 1 / 0)
    with pytest.raises(UserError, match=r"training\.report_to: wandb cannot be started: division by zero"):
        train(recipe(training__report_to=["wandb"]))
