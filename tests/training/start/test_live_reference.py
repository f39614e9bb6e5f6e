"""`training.reference: live`: a frozen copy of the values computes what a precomputed reference says, in every pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from peftcli.errors import Stopped, UserError
from peftcli.inference.evaluate_run import evaluate_run
from peftcli.training.run import train
from tests.matrix.several_worlds import in_worlds
from tests.recipes import CtrlC, Recorder
from tests.training.start.test_reference_rows import OPTIONS, pairs
from tests.training.test_every_method import SMALL
from tests.training.test_train import adapter

LIVE = {"training__reference": "live"}
KINDS: dict[str, dict[str, Any]] = {
    "lora": {"lora_dropout": 0.3},
    "dora": {"name": "lora", "use_dora": True},
    "adalora": {"init_r": 4, "target_r": 1, "tinit": 0, "tfinal": 1, "deltaT": 1},
    "prefix_tuning": {"prefix_projection": True, "encoder_hidden_size": 8},
    "prompt_tuning": {},
    "bitfit": {},
    "full": {},
}


def method(kind: str) -> dict[str, Any]:
    return {"name": kind, **SMALL.get(kind, {}), **KINDS[kind]}


@pytest.mark.parametrize("kind", KINDS)
def test_the_numbers_are_those_of_a_precomputed_reference(recipe, kind: str) -> None:
    """Under checkpointing, in two micro-batches a step; stopped and gone on to the same bytes."""
    options = {
        **OPTIONS,
        "method": method(kind),
        "training__gradient_checkpointing": True,
        "training__per_device_train_batch_size": 2,
        "training__gradient_accumulation_steps": 2,
        "training__eval_steps": 2,
        "training__learning_rate": 1e-3 if kind == "full" else 0.01,
    }
    family = "gpt2" if kind == "bitfit" else "llama"
    runs = {}
    for name, own in (("kept", {}), ("live", LIVE)):
        loaded, recorder = recipe(family, "preference", pairs(16), name=name, **options, **own), Recorder()
        runs[name] = (loaded, recorder, train(loaded, reporter=recorder))
    (_, kept, before), (loaded, live, summary) = runs["kept"], runs["live"]
    assert live.losses[0] == pytest.approx(0.693147, abs=1e-5) or kind == "lora"  # whose dropout acts in the policy
    assert live.losses == pytest.approx(kept.losses, rel=2e-4)
    assert live.losses[-1] != pytest.approx(live.losses[0], abs=1e-4)
    for key, value in before.eval.items():
        if key != "eval_runtime":
            assert summary.eval[key] == pytest.approx(value, rel=2e-3, abs=2e-4), key
    again = evaluate_run(loaded.recipe.output_dir)
    assert again["eval_rewards_margins"] == pytest.approx(summary.eval["eval_rewards_margins"], rel=1e-3, abs=1e-4)

    parts = recipe(family, "preference", pairs(16), name="parts", **options, **LIVE)
    stopped, rest = CtrlC(2), Recorder()
    with pytest.raises(Stopped):
        train(parts, reporter=stopped)
    done = train(parts, resume=True, reporter=rest)
    assert stopped.losses + rest.losses == live.losses
    assert {**done.eval, "eval_runtime": 0} == {**summary.eval, "eval_runtime": 0}
    if kind != "full":
        one, other = adapter(parts.recipe.output_dir), adapter(loaded.recipe.output_dir)
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_a_fine_tuned_model_is_its_own_reference_whatever_is_cast(recipe) -> None:
    """In bfloat16, where autocast keeps casts; the start is an adapter that is not zero."""
    tuned = recipe("llama", "causal_lm", name="tuned", training__learning_rate=0.1)
    train(tuned)
    recorder = Recorder()
    own = {"method__init_from": tuned.recipe.output_dir, "training__bf16": True, "training__learning_rate": 0.05}
    going = recipe("llama", "preference", pairs(16), name="going", training__max_steps=3, **own, **LIVE)
    train(going, reporter=recorder)
    assert recorder.losses[0] == pytest.approx(0.693147, abs=1e-6)  # the same batches: no rounding between them
    assert recorder.losses[-1] < 0.69
    assert not [note for note in recorder.notes if "no gradient" in note]


def test_rows_that_stream_have_a_live_reference(recipe) -> None:
    recorder = Recorder()
    options = {"data__streaming": True, "data__val_set_size": 0, "training__max_steps": 3}
    train(recipe("llama", "preference", pairs(16), **options, **LIVE), reporter=recorder)
    assert recorder.losses[0] == pytest.approx(0.693147, abs=1e-6) and len(recorder.losses) == 3


def test_a_run_that_goes_on_misses_its_copy(recipe, tmp_path) -> None:
    loaded = recipe("llama", "preference", pairs(16), **OPTIONS, **LIVE)
    with pytest.raises(Stopped):
        train(loaded, reporter=CtrlC(2))
    for file in (tmp_path / "runs" / "run" / "reference").iterdir():
        file.unlink()
    (tmp_path / "runs" / "run" / "reference").rmdir()
    with pytest.raises(UserError, match="no copy of the values before the first step"):
        train(loaded, resume=True)


def test_two_processes_equal_one(recipe, tmp_path) -> None:
    """LoRA with half of the rows each, stopped and gone on; full fine-tuning of a model that is divided."""
    size = "training__per_device_train_batch_size"
    alone, worlds = [], []
    for kind, strategy, stop in (("lora", "ddp", [2]), ("full", "fsdp", [])):
        options = {**OPTIONS, **LIVE, "data__val_set_size": 5, "method": method(kind), "training__adam_epsilon": 1e-3,
                   "training__learning_rate": 1e-3}  # fmt: skip
        recorder = Recorder()
        summary = train(recipe("llama", "preference", pairs(16), name=kind, **options, **{size: 4}), reporter=recorder)
        alone.append((recorder.losses, summary.eval["eval_rewards_margins"]))
        both = recipe("llama", "preference", pairs(16), name=f"{kind}-of-two", **options, **{size: 2},
                      distributed__strategy=strategy)  # fmt: skip
        going = {"kind": "train", "recipe": str(both.path)}
        using = {"kind": "evaluate", "run": both.recipe.output_dir}
        worlds.append((2, [*({**going, "stop_at": at} for at in stop), {**going, "resume": bool(stop)}, using]))
    for (losses, margin), (*runs, evaluated) in zip(alone, in_worlds(tmp_path, worlds), strict=True):
        assert [loss for run in runs for loss in run] == pytest.approx(losses, rel=1e-5)
        assert evaluated["eval_rewards_margins"] == pytest.approx(margin, rel=1e-3, abs=1e-5)
