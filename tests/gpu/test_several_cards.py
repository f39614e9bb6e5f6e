"""One to all cards of a machine, over NCCL: plain, divided (FSDP2) and in 4 bits, to the losses of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
ROWS = 8
"""Of a step, over all processes."""
KINDS: dict[str, dict[str, Any]] = {
    "ddp": {"distributed__strategy": "ddp"},
    "fsdp": {"distributed__strategy": "fsdp"},
    "fsdp, 4 bits": {"distributed__strategy": "fsdp", "method": {"name": "qlora", "r": 4}},
}


def counts(device: str) -> list[int]:
    """Return the numbers of processes that are tried."""
    import torch

    most = torch.cuda.device_count() if device == "cuda" else 2
    return [number for number in (2, 4, 8) if number <= most]


def losses_in(recipe: Any, device: str, processes: int, name: str, **changes: Any) -> list[float]:
    """Train in several processes by the command line, and return the losses that it wrote."""
    rows = {"training__per_device_train_batch_size": ROWS // processes, "training__device": device}
    loaded = recipe(name=name, training__max_steps=3, training__save_strategy="no", **rows, **changes)
    command = [sys.executable, "-m", "peftcli", "train", loaded.path, "--num-processes", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = (Path(loaded.recipe.output_dir) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [line["loss"] for line in map(json.loads, lines) if "loss" in line]


@pytest.mark.parametrize("kind", KINDS)
def test_several_processes_train_to_the_losses_of_one(recipe: Any, device: str, kind: str) -> None:
    if device == "cpu" and kind != "fsdp":
        pytest.skip("tests/distributed and tests/matrix train it over gloo")
    if not counts(device):
        pytest.skip("one card")
    if "4 bits" in kind:
        pytest.importorskip("bitsandbytes")
    changes = {"training__tf32": False, **KINDS[kind]}
    alone = {key: value for key, value in changes.items() if not key.startswith("distributed")}
    one = losses_in(recipe, device, 1, "one", **alone)
    for number in counts(device):
        found = losses_in(recipe, device, number, f"of-{number}", **changes)
        assert found == pytest.approx(one, rel=2e-3), number
