"""A base divided among processes: every method trains to the losses and the adapter of one process.

One launch for each number of processes trains all cases in turn; one process trains the same cases for comparison.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from peftcli.protocol.registry import registry
from peftcli.training.run import train
from tests.matrix.runs import Workshop

PRECISE = {"training__adam_epsilon": 1e-4}
"""Without it AdamW turns the rounding of gradients that are zero (an attention's key biases) into whole steps."""
EVALUATED = {"data__val_set_size": 5, "training__eval_steps": 2}


pytestmark = pytest.mark.timeout(900)  # dozens of runs


@dataclass(frozen=True)
class Case:
    """A run: a method on a tiny model, and what its recipe has besides."""

    family: str
    method: str
    changes: dict[str, Any] = field(default_factory=dict)
    close: float = 1e-6


UNEVEN = {"training__max_tokens_per_micro_batch": 24, "training__gradient_accumulation_steps": 2}
"""Processes have different numbers of micro-batches: those with fewer take part in passes for nothing."""
GENERATED = {**EVALUATED, "training__eval_generate": 3, "training__metrics": ["exact_match"]}

METHODS = {
    name: Case("gpt2" if name == "bitfit" else "llama", name, EVALUATED if name in ("lora", "full") else {})
    for name in registry.names()
}
SETTINGS = {
    "head": Case("bert", "lora", EVALUATED),
    "trained-encoder": Case("bert", "full", EVALUATED),
    "virtual-tokens": Case("bert", "prompt_tuning"),
    "two-stacks": Case("t5", "lora", GENERATED),
    "two-stacks-trained": Case("bart", "full"),
    "generation": Case("llama", "prefix_tuning", GENERATED),
    "generation-prompt": Case("gpt2", "prompt_tuning", GENERATED),
    "uneven": Case("llama", "lora", {**UNEVEN, **EVALUATED}),
    "uneven-trained": Case("llama", "freeze", UNEVEN),
    "checkpointing": Case("llama", "lora", {"training__gradient_checkpointing": True}),
    "checkpointing-trained": Case("llama", "full", {"training__gradient_checkpointing": True}),
    "packing": Case("qwen2", "lora", {"data__packing": True}),
    "packing-masks": Case("opt", "lora", {"data__packing": True}),
    "bf16": Case("llama", "lora", {"training__bf16": True, **EVALUATED}, close=2e-2),
    "bf16-weights": Case("llama", "ia3", {"model__dtype": "bfloat16"}, close=2e-2),
    "dora": Case("llama", "lora", {"method__use_dora": True}),
    "pissa": Case("llama", "lora", {"method__init_lora_weights": "pissa"}),
    "vocabulary-prompt": Case("llama", "prompt_tuning", {"method__prompt_tuning_init": "sample_vocab"}),
    "saved-table": Case("llama", "lora", {"method__modules_to_save": ["embed_tokens"]}),
    "tied": Case("gpt2", "full", EVALUATED),
    "shared-blocks": Case("albert", "lora"),
    "relative-positions": Case("deberta-v2", "lora"),
    "cache-view": Case("bloom", "prefix_tuning"),
    "dropout": Case("llama", "lora", {"method__lora_dropout": 0.3}),
    "kept-gathered": Case("llama", "lora", {"distributed__reshard_after_forward": False}),
    "sliding-window": Case("gemma2", "lora"),
    "experts": Case("qwen3_moe", "lora", {"method__target_modules": ["attn"]}),
}
IN_TWO = {**METHODS, **SETTINGS}
IN_FOUR = {name: IN_TWO[name] for name in ("lora", "full", "head", "generation", "uneven")}


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("sharded"))


@pytest.fixture(scope="module")
def sharded(workshop: Workshop) -> Callable[[int], None]:
    """Return what trains all cases in a number of processes, once."""

    @cache
    def trained(processes: int) -> None:
        cases = IN_TWO if processes == 2 else IN_FOUR
        files = [
            recipe_of(workshop, case, f"{name}-{processes}", processes, distributed__strategy="fsdp").path
            for name, case in cases.items()
        ]
        launch([str(file) for file in files], processes)

    return trained


@pytest.fixture(scope="module")
def alone(workshop: Workshop) -> Callable[[str], Path]:
    """Return what trains a case in this process, once, and gives its run directory."""

    @cache
    def trained(name: str) -> Path:
        return Path(train(recipe_of(workshop, IN_TWO[name], f"{name}-1", 1)).output_dir)

    return trained


def recipe_of(workshop: Workshop, case: Case, name: str, processes: int, **more: Any) -> Any:
    """Write a case's recipe for so many processes; a step has 8 rows in any case."""
    rows = {"training__per_device_train_batch_size": 8 // processes}
    changes = {**PRECISE, **rows, **case.changes, **more}
    if "training__gradient_accumulation_steps" in case.changes:
        changes["training__per_device_train_batch_size"] //= 2
    return workshop.recipe(name, case.family, case.method, **changes)


def launch(recipes: list[str], processes: int) -> None:
    """Train recipes in turn in several processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.distributed.train_several", *recipes],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "OMP_NUM_THREADS": "1", **{key: str(value) for key, value in variables.items()}},
        )
        for variables in ({**shared, "RANK": rank, "LOCAL_RANK": rank} for rank in range(processes))
    ]
    try:
        for child in children:
            child.wait(600)
    finally:
        for child in children:
            child.kill()


def lines_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def result_of(run: Path) -> dict[str, Tensor]:
    """Return the tensors of what a run left."""
    files = [*run.glob("adapter/*.safetensors"), *run.glob("model/*.safetensors")]
    return {key: tensor for file in files for key, tensor in load_file(file).items()}


@pytest.mark.parametrize("processes", [2, 4])  # a test each: workers of pytest would each launch their own
def test_a_divided_base_trains_to_the_losses_and_the_adapter_of_one_process(
    workshop: Workshop, alone: Callable[[str], Path], sharded: Callable[[int], None], processes: int
) -> None:
    sharded(processes)
    wrong = {}
    for name in IN_TWO if processes == 2 else IN_FOUR:
        try:
            compare(workshop, alone, processes, name)
        except (AssertionError, OSError) as error:
            wrong[name] = str(error)
    assert wrong == {}


def compare(workshop: Workshop, alone: Callable[[str], Path], processes: int, name: str) -> None:
    """Assert that a case came out as with one process, and that each process held its share."""
    errors = list(workshop.home.glob(f"{name}-{processes}.yaml.error*"))
    assert [error.read_text(encoding="utf-8") for error in errors] == []
    case, one, run = IN_TWO[name], alone(name), workshop.home / "runs" / f"{name}-{processes}"
    for left, right in zip(lines_of(one), lines_of(run), strict=True):
        for key in ("loss", "grad_norm", "eval_loss", "eval_exact_match", "tokens"):
            assert (key in left) == (key in right)
            if key in left:
                tolerance = case.close if key != "grad_norm" else 10 * case.close
                assert right[key] == pytest.approx(left[key], rel=tolerance), (key, left["step"])
    ours, theirs = result_of(run), result_of(one)
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        assert torch.allclose(ours[key].float(), tensor.float(), rtol=0, atol=10 * case.close), key
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    assert (summary["processes"], summary["strategy"]) == (processes, "fsdp")
    if "saved" not in name:  # what is trained beside the base is whole in each process
        base = sum(file.stat().st_size for file in workshop.model(case.family).glob("*.safetensors"))
        assert summary["base_bytes_per_process"] <= 1.1 * base / processes
