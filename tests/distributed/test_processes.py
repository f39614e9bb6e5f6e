"""Two processes on this machine train to the losses of one, and evaluate exactly whatever the shards."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from peftcli.cli.app import main
from peftcli.distributed import processes
from peftcli.distributed.launching import launch
from peftcli.distributed.processes import in_buckets
from peftcli.recipe.schema import FastPathsSpec
from peftcli.training.run import train

OPTIONS = {"data__val_set_size": 5, "training__max_steps": 5, "training__eval_steps": 2, "training__save_steps": 2}


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(ended.value.code or 0)


def lines(directory: str | Path) -> list[dict]:
    return [json.loads(line) for line in (Path(directory) / "metrics.jsonl").read_text().splitlines()]


class Measured:
    """A tensor of 400 bytes that counts how often it is asked for its size."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype, self.asked = dtype, 0

    @property
    def nbytes(self) -> int:
        self.asked += 1
        return 400


def test_buckets_hold_one_dtype_and_a_size_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A method with thousands of small tensors sums their gradients in every step."""
    monkeypatch.setattr(processes, "BUCKET_BYTES", 1000)
    tensors = [Measured(torch.float32) for _ in range(7)] + [Measured(torch.bfloat16)]
    assert [len(bucket) for bucket in in_buckets(tensors)] == [3, 3, 1, 1]
    assert {tensor.asked for tensor in tensors} == {1}


@pytest.mark.parametrize(("family", "task"), [("llama", "causal_lm"), ("bert", "sequence_classification")])
def test_two_processes_equal_one_with_the_same_effective_batch(recipe, family, task) -> None:
    """With every fast path, as a recipe has them, against one process with them, and against one without any."""
    two = recipe(family, task, name="two", training__per_device_train_batch_size=3, **OPTIONS)
    assert run("train", two.path, "--num-processes", "2", "--quiet") == 0
    right = lines(two.recipe.output_dir)
    off = dict.fromkeys(FastPathsSpec.model_fields, False)
    for name, changes in {"fast": {}, "plain": {"training__fast_paths": off}}.items():
        one = recipe(family, task, name=name, training__per_device_train_batch_size=6, **changes, **OPTIONS)
        train(one)
        left = lines(one.recipe.output_dir)
        assert [line["step"] for line in left] == [line["step"] for line in right]
        for a, b in zip(left, right, strict=True):
            for key in ("loss", "eval_loss", "grad_norm", "tokens", "eval_rows"):
                if key in a:
                    assert b[key] == pytest.approx(a[key], rel=1e-4), (name, key, a["step"])


def test_a_mistake_is_said_once_and_ends_with_2(recipe, capfd) -> None:
    loaded = recipe(name="wrong", method__target_modules=["atn.q"])
    assert run("train", loaded.path, "--num-processes", "2") == 2
    assert capfd.readouterr().err.count("atn.q") == 1


def test_processes_that_would_start_apart_take_the_first_ones_values(recipe, tmp_path: Path) -> None:
    """Parts, frozen ones that belong to them, buffers, a head that the base lacks; and the dtype of training."""
    few = {"data__val_set_size": 0, "training__max_steps": 2, "training__bf16": "auto"}
    pissa = {"name": "lora", "r": 2, "init_lora_weights": "pissa", "target_modules": ["attn.q"]}
    vera = {"name": "vera", "r": 4, "target_modules": ["attn.q"]}
    made = [
        recipe(name="pissa", method=pissa, **few),
        recipe(name="vera", method=vera, **few),
        recipe("bert", "sequence_classification", name="head", method={"name": "adapter"}, **few),
    ]
    words = ["-m", "tests.distributed.unequal_processes", str(tmp_path / "found"), *(one.path for one in made)]
    assert launch([sys.executable, *map(str, words)], 2) == 0
    first, second = (json.loads((tmp_path / f"found.{rank}").read_text()) for rank in range(2))
    assert set(first) == {"pissa", "vera", "head"}
    for name, one in first.items():
        assert one["tensors"] > 2 and one["apart"] == [], name
        assert one["precision"] == second[name]["precision"] == "fp32 (as the weights)"
