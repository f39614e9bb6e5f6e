"""Ctrl-C where no state can be saved: the message says what is left and how to go on, and nothing stands in the way."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from peftcli.data.rows.collation import Collator
from peftcli.errors import Stopped, UserError
from peftcli.record.run_directory import RunDirectory
from peftcli.training import run as running
from peftcli.training import setup
from peftcli.training.milestones import Milestones
from peftcli.training.run import train
from tests.recipes import Recorder


def interrupt(*_arguments: object, **_options: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("where", ["while loading", "before the first step"])
def test_nothing_is_left_of_a_run_without_a_step(recipe, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    loaded = recipe(training__max_steps=2, data__val_set_size=0.25)
    with monkeypatch.context() as patched:
        if where == "while loading":
            patched.setattr(running, "build_session", interrupt)
        else:
            patched.setattr(Milestones, "evaluate_first", interrupt)
        with pytest.raises(Stopped, match="before the first step: nothing was trained") as caught:
            train(loaded)
    assert caught.value.exit_code == 130
    assert not Path(loaded.recipe.output_dir).exists()
    assert train(loaded).status == "finished"  # the same command, without --resume or --overwrite


def test_a_run_that_is_there_stays_as_it_was(recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = recipe(training__max_steps=2)
    out = Path(train(loaded).output_dir)
    before = sorted(path.name for path in out.rglob("*"))
    monkeypatch.setattr(running, "build_session", interrupt)
    with pytest.raises(Stopped, match="is as it was"):
        train(loaded, overwrite=True)
    assert sorted(path.name for path in out.rglob("*")) == before


class Twice(Recorder):
    """Stands for a second Ctrl-C at the third step, which no longer waits for a checkpoint."""

    def step(self, record) -> None:
        super().step(record)
        if record.step == 3:
            raise KeyboardInterrupt


@pytest.mark.parametrize(("every", "way"), [(2, "--resume"), (50, "--overwrite")])
def test_a_second_press_names_the_way_on(recipe, every: int, way: str) -> None:
    loaded = recipe(training__max_steps=6, training__save_steps=every)
    with pytest.raises(Stopped, match=way):
        train(loaded, reporter=Twice())
    assert train(loaded, resume=way == "--resume", overwrite=way == "--overwrite").steps == 6


def test_a_run_that_ended_early_is_finished_by_resume_without_another_step(recipe, monkeypatch) -> None:
    loaded = recipe(training__max_steps=20, training__eval_steps=1, training__eval_strategy="steps",
                    training__save_steps=1, training__save_strategy="steps", training__early_stopping_patience=1,
                    training__early_stopping_threshold=9.0, data__val_set_size=0.25)  # fmt: skip
    with monkeypatch.context() as patched:
        patched.setattr(running, "finish", interrupt)
        with pytest.raises(Stopped):
            train(loaded)
    steps = max(RunDirectory(Path(loaded.recipe.output_dir)).checkpoints().steps())
    summary = train(loaded, resume=True)
    assert (summary.status, summary.steps) == ("early_stopped", steps)


def test_resume_refuses_rows_that_changed(recipe, monkeypatch) -> None:
    loaded = recipe(training__max_steps=4, training__save_steps=2, training__save_strategy="steps")
    with monkeypatch.context() as patched:
        patched.setattr(running, "finish", interrupt)
        with pytest.raises(Stopped):
            train(loaded)
    data = Path(loaded.recipe.data.path)
    text = data.read_text(encoding="utf-8")
    data.write_text("".join(reversed(text.splitlines(keepends=True))), encoding="utf-8")
    with monkeypatch.context() as patched:
        patched.setattr(setup, "load_model", interrupt)  # refused before weights load
        with pytest.raises(UserError, match="the training rows changed"):
            train(loaded, resume=True)
    data.write_text(text, encoding="utf-8")
    assert train(loaded, resume=True).status == "finished"


def test_an_evaluation_is_broken_off_and_made_up_for_when_the_run_goes_on(recipe, monkeypatch) -> None:
    """One before the last, the same again while it is made up for, and the last one."""
    options = {"training__max_steps": 4, "training__eval_steps": 2, "data__val_set_size": 4,
               "training__per_device_eval_batch_size": 1}  # fmt: skip
    whole, parts = recipe(name="whole", **options), recipe(name="parts", **options)
    train(whole)
    out, collate = Path(parts.recipe.output_dir), Collator.__call__
    # four batches each: the one before the first step, the one after step 2, the one after step 4
    for resume, batch, step in ((False, 4 + 3, 2), (True, 3, 2), (True, 4 + 2, 4)):
        begun = count(1)

        def stopped_at(self: Collator, *rows: object, at: int = batch, begun: Iterator[int] = begun) -> object:
            if next(begun) == at:
                signal.raise_signal(signal.SIGTERM)
            return collate(self, *rows)

        with monkeypatch.context() as patched, pytest.raises(Stopped, match=f"stopped after step {step} of 4"):
            patched.setattr(Collator, "__call__", stopped_at)
            train(parts, resume=resume)
        assert next(begun) == batch + 1  # no further batch was evaluated
        assert evaluated(out) == list(range(0, step, 2))
    train(parts, resume=True)
    assert evaluated(out) == [0, 2, 4]
    one, other = (json.loads((Path(run.recipe.output_dir) / "summary.json").read_text()) for run in (whole, parts))
    for found in (one, other):
        del found["eval"]["eval_runtime"]
    assert (one["eval"], one["best_step"]) == (other["eval"], other["best_step"])


def evaluated(run: Path) -> list[int]:
    """Return the steps whose evaluation is recorded."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line["step"] for line in lines if "eval_loss" in line]
