"""KTO through the whole loop: its estimate is one number of a whole step, in training as in an evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from peftcli.errors import Stopped
from peftcli.inference.evaluate_run import evaluate_run
from peftcli.training.run import train
from tests.matrix.several_worlds import in_worlds
from tests.recipes import WORDS, CtrlC, Recorder, write_jsonl
from tests.training.test_train import adapter

OPTIONS: dict[str, Any] = {
    "training__loss_type": "kto", "training__learning_rate": 0.01, "training__max_steps": 4, "training__eval_steps": 4,
    "training__save_steps": 1, "data__val_set_size": 6, "method__lora_dropout": 0.3, "training__beta": 0.5,
}  # fmt: skip


def judged(count: int) -> list[dict[str, Any]]:
    """Prompts with one answer each: good ones in green, two of three, and bad ones, which are longer, in red."""
    return [
        {
            "prompt": f"the {WORDS[i % 12]} {WORDS[(i * 5 + i // 12) % 12]} " + "and " * (i % 5),
            "completion": f"red {WORDS[(i + 3) % 12]} and " + "bad " * (i % 4)
            if i % 3 == 2
            else f"green {WORDS[i % 7]}",
            "label": i % 3 != 2,
        }
        for i in range(count)
    ]


def test_it_learns_goes_on_and_opens_again(recipe, tmp_path: Path) -> None:
    whole, recorder = recipe("llama", "preference", judged(24), name="whole", **OPTIONS), Recorder()
    summary = train(whole, reporter=recorder)
    assert recorder.losses[0] == pytest.approx(0.5, abs=1e-4)  # the model is its own reference: 1 - sigmoid(0)
    assert recorder.losses[-1] < 0.49
    assert recorder.facts["loss"].startswith("kto, beta 0.5, desirable_weight 1, undesirable_weight 1; the reference")
    found = summary.eval
    assert found["eval_kl"] > 0  # what it learnt moved the mismatched answers, too
    assert found["eval_rewards_margins"] == pytest.approx(found["eval_rewards_chosen"] - found["eval_rewards_rejected"])
    again = evaluate_run(whole.recipe.output_dir)
    own = [key for key in again if key != "eval_runtime"]
    assert {key: again[key] for key in own} == pytest.approx({key: found[key] for key in own}, rel=1e-4, abs=1e-5)
    other = write_jsonl(tmp_path / "other.jsonl", judged(7))
    assert evaluate_run(whole.recipe.output_dir, str(other))["eval_rows"] == 7

    parts, stopped, rest = recipe("llama", "preference", judged(24), name="parts", **OPTIONS), CtrlC(2), Recorder()
    with pytest.raises(Stopped):
        train(parts, reporter=stopped)
    train(parts, resume=True, reporter=rest)
    assert stopped.losses + rest.losses == recorder.losses
    one, two = adapter(parts.recipe.output_dir), adapter(whole.recipe.output_dir)
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_an_evaluation_is_the_same_however_its_rows_are_batched(recipe) -> None:
    found = []
    for size in (16, 1):
        options = {**OPTIONS, "training__per_device_eval_batch_size": size}
        found.append(train(recipe("llama", "preference", judged(24), name=f"of-{size}", **options)).eval)
    assert found[0]["eval_kl"] > 0
    for key in ("eval_loss", "eval_kl", "eval_rewards_margins"):
        assert found[0][key] == pytest.approx(found[1][key], rel=1e-5)


def test_two_processes_equal_one(recipe, tmp_path: Path) -> None:
    """Eleven rows to train, so that shares are unequal; with dropout; a base in each process, and a divided one."""
    options = {**OPTIONS, "data__val_set_size": 5, "training__adam_epsilon": 1e-3}
    size = "training__per_device_train_batch_size"
    alone, recorder = recipe("llama", "preference", judged(16), name="alone", **options, **{size: 4}), Recorder()
    train(alone, reporter=recorder)
    found = evaluate_run(alone.recipe.output_dir)
    both, worlds = [], []
    for strategy in ("ddp", "fsdp"):
        own = {size: 2, "data__cache_dir": str(tmp_path / f"of-{strategy}")}  # nothing that one process computed
        both.append(recipe("llama", "preference", judged(16), name=strategy, **options, **own,
                           distributed__strategy=strategy))  # fmt: skip
        using = {"kind": "evaluate", "run": both[-1].recipe.output_dir}
        worlds.append((2, [{"kind": "train", "recipe": str(both[-1].path)}, using]))
    for loaded, (losses, evaluated) in zip(both, in_worlds(tmp_path, worlds), strict=True):
        assert losses == pytest.approx(recorder.losses, rel=2e-6)
        one, other = adapter(alone.recipe.output_dir), adapter(loaded.recipe.output_dir)
        for key, tensor in one.items():
            torch.testing.assert_close(other[key], tensor, rtol=1e-4, atol=2e-5)
        del evaluated["eval_runtime"]
        assert evaluated == pytest.approx({key: found[key] for key in evaluated}, rel=1e-4, abs=1e-5)


def test_a_live_reference_gives_the_same_losses(recipe) -> None:
    found = []
    for reference in ("precomputed", "live"):
        recorder = Recorder()
        train(
            recipe("llama", "preference", judged(24), name=reference, **OPTIONS, training__reference=reference),
            reporter=recorder,
        )
        found.append(recorder.losses)
    assert found[0] == pytest.approx(found[1], rel=1e-5)
