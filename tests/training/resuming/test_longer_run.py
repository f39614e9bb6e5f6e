"""A run that goes on for longer than it began: bit for bit where the schedule allows it, else refused with a reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from peftcli.errors import Stopped, UserError
from peftcli.inference.evaluate_run import evaluate_run
from peftcli.record.checkpoints import read_verified
from peftcli.training import run as running
from peftcli.training.run import train
from tests.recipes import CtrlC, Recorder

BY_EPOCHS = {
    "data__val_set_size": 4,
    "method__lora_dropout": 0.2,
    "training__max_steps": None,
    "training__num_train_epochs": 2,
}
WORST = {"training__greater_is_better": True}
"""The first evaluation has the highest loss: it is the best one to the end."""


def weights(run: str | Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    (file,) = [path for folder in ("adapter", "model") for path in Path(run, folder).glob("*.safetensors")]
    return load_file(file)


def last_checkpoint(run: str | Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = read_verified(max(Path(run, "checkpoints").glob("step-*")))["parameters"]
    return found


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("options", [{}, WORST, {**WORST, "method": {"name": "full"}}], ids=["last", "best", "full"])
def test_two_epochs_and_two_more_equal_four(recipe, options: dict) -> None:
    whole = recipe(name="whole", **{**BY_EPOCHS, **options, "training__num_train_epochs": 4})
    told = train(whole)
    short = recipe(name="parts", **{**BY_EPOCHS, **options})
    out = Path(train(short).output_dir)
    recorder = Recorder()
    longer = recipe(name="parts", **{**BY_EPOCHS, **options, "training__num_train_epochs": 4})
    summary = train(longer, resume=True, reporter=recorder)
    assert [record.step for record in recorder.steps] == list(range(7, 13))
    assert same(weights(out), weights(whole.recipe.output_dir))
    assert same(last_checkpoint(out), last_checkpoint(whole.recipe.output_dir))
    kept = ("status", "steps", "best_step", "train_tokens", "supervised_tokens")
    assert [getattr(summary, key) for key in kept] == [getattr(told, key) for key in kept]
    assert summary.best_step == 3 if options else summary.best_step > 6
    assert evaluate_run(out)["eval_loss"] == summary.eval["eval_loss"] == told.eval["eval_loss"]
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps) and steps.count(6) == 2  # a line of the step, and one of its evaluation
    assert sorted(path.name.split("-")[0] for path in (out / "checkpoints").iterdir()) == ["step"] * 2
    assert train(longer).status == "already_finished"


def test_the_message_says_what_the_schedule_does(recipe, recorder) -> None:
    train(recipe(training__max_steps=4, training__lr_scheduler_type="linear", training__learning_rate=1e-3))
    longer = recipe(training__max_steps=8, training__lr_scheduler_type="linear", training__learning_rate=1e-3)
    with pytest.raises(UserError, match="extend it with --resume"):
        train(longer)
    train(longer, resume=True, reporter=recorder)
    (note,) = [note for note in recorder.notes if note.startswith("continuing after step 4")]
    assert "to step 8 instead of 4" in note
    assert "(linear, computed for 8 steps) was 0.00025 at the last step, is 0.0005 at the next one" in note
    assert recorder.steps[0].learning_rate == pytest.approx(5e-4)


def test_an_unfinished_run_can_be_longer_too(recipe, recorder) -> None:
    whole = recipe(name="whole", training__max_steps=8)
    train(whole)
    with pytest.raises(Stopped):
        train(recipe(training__max_steps=6), reporter=CtrlC(2))
    longer = recipe(training__max_steps=8)
    train(longer, resume=True, reporter=recorder)
    assert [record.step for record in recorder.steps] == [3, 4, 5, 6, 7, 8]
    assert same(weights(longer.recipe.output_dir), weights(whole.recipe.output_dir))


@pytest.mark.parametrize(
    ("first", "then", "message"),
    [
        ({}, {"training__max_steps": 3}, "asks for 3 steps, and the run in .* has 4: only the length may grow"),
        ({}, {"training__num_train_epochs": 9}, "max_steps decides, not num_train_epochs"),
        ({}, {"training__max_steps": 8, "method__r": 2}, r"differ in method\.r, training\.max_steps"),
        ({"training__save_strategy": "no"}, {"training__max_steps": 8}, r"last step \(4\) is not there \(none"),
        (
            {"data__val_set_size": 4, "training__eval_steps": 1, "training__early_stopping_patience": 1,
             "training__early_stopping_threshold": 9.0},
            {"training__max_steps": 8}, "early stopping ended the run",
        ),
    ],
)  # fmt: skip
def test_what_cannot_go_on_is_refused_and_stays_as_it_is(recipe, first: dict, then: dict, message: str) -> None:
    out = Path(train(recipe(**{"training__max_steps": 4, **first})).output_dir)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=message) as caught:
        train(recipe(**{"training__max_steps": 4, **first, **then}), resume=True)
    assert "output_dir" in str(caught.value)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_a_schedule_of_the_method_does_not_start_over(recipe) -> None:
    adalora = {"method": {"name": "adalora", "init_r": 4, "target_r": 2, "target_modules": ["attn.q"]}}
    train(recipe(training__max_steps=6, **adalora))
    with pytest.raises(UserError, match="adalora has a schedule of its own, which ended before step 6"):
        train(recipe(training__max_steps=12, **adalora), resume=True)


def interrupt(*_arguments: object) -> None:
    raise KeyboardInterrupt


def test_interrupted_before_its_first_new_step_it_goes_on(recipe, monkeypatch) -> None:
    options = {**BY_EPOCHS, **WORST}
    out = Path(train(recipe(**options)).output_dir)
    longer = recipe(**{**options, "training__num_train_epochs": 3})
    with monkeypatch.context() as patched:
        patched.setattr(running, "header", interrupt)
        with pytest.raises(Stopped, match="--resume continues"):
            train(longer, resume=True)
    assert train(longer, resume=True).steps == 9
    assert json.loads((out / "summary.json").read_text())["best_step"] == 3


def test_what_a_finished_run_does_not_take_from_a_recipe_is_told_or_refused(recipe, recorder) -> None:
    train(recipe(training__max_steps=2))
    shared = {"training__per_device_train_batch_size": 2, "training__gradient_accumulation_steps": 2}
    done = train(recipe(training__max_steps=2, **shared), resume=True, reporter=recorder)
    assert done.status == "already_finished"
    assert recorder.notes[0] == (
        "training.per_device_train_batch_size (4 before, 2 now) and training.gradient_accumulation_steps (1 before, "
        "2 now): not applied, since the run is finished"
    )
    for steps in (2, 4):  # as it is, and longer
        with pytest.raises(UserError, match="a step of this run has 4 rows; here it would have 8"):
            train(recipe(training__max_steps=steps, training__per_device_train_batch_size=8), resume=True)


def test_the_order_of_expressions_is_that_of_before(recipe) -> None:
    loaded = recipe(training__max_steps=2, training__lr_groups={"lora": 2e-3, "lora_B": 1e-3})
    train(loaded)
    turned = dict(reversed(loaded.recipe.training.lr_groups.items()))
    with pytest.raises(UserError, match=r"they differ in training\.lr_groups"):
        train(loaded.with_training(lr_groups=turned, max_steps=4), resume=True)
