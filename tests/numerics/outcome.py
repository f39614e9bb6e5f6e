"""What a run left behind, its losses and its trained tensors, and where two runs first differ in a bit."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

NUMBERS = ("loss", "grad_norm", "eval_loss")
"""What is compared of a line in metrics.jsonl; the rest is the clock's or follows from these."""

Losses = list[dict[str, float]]
"""One entry for each line of metrics.jsonl: its step, and those of `NUMBERS` that it has."""


@dataclass(frozen=True)
class Outcome:
    """What a run left behind.

    Args:
        losses: by step.
        tensors: of each file of the adapter (or model), by the file's path in the run directory and the tensor's name;
            None for a stored outcome, which has the digests alone.
        digests: of each such file's tensors.
    """

    losses: Losses
    tensors: dict[str, dict[str, Tensor]] | None
    digests: dict[str, str]


@dataclass(frozen=True)
class Comparison:
    """Where two outcomes of one run first differ; None where they do not.

    Args:
        run: its name.
    """

    run: str
    losses: str | None
    adapter: str | None

    @property
    def equal(self) -> bool:
        """Whether nothing differs."""
        return self.losses is None and self.adapter is None


def read_outcome(directory: Path) -> Outcome:
    """Return what the run in this directory left behind.

    Raises:
        ValueError: there are no losses or no tensors: comparing them would prove nothing.
    """
    lines = (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [{key: line[key] for key in ("step", *NUMBERS) if key in line} for line in map(json.loads, lines)]
    files = sorted(file for folder in ("adapter", "model") for file in (directory / folder).glob("*.safetensors"))
    tensors = {str(file.relative_to(directory)): load_file(file) for file in files}
    if not any("loss" in line for line in losses) or not any(tensors.values()):
        raise ValueError(f"{directory} has no losses or no tensors")
    return Outcome(losses, tensors, {file: digest(named) for file, named in tensors.items()})


def digest(tensors: dict[str, Tensor]) -> str:
    """Return a hash of names, types, shapes and raw bytes."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(_raw(tensor).numpy().tobytes())
    return total.hexdigest()


def compare(run: str, before: Outcome, now: Outcome) -> Comparison:
    """Return where a run first differs from before."""
    return Comparison(run, loss_difference(before.losses, now.losses), adapter_difference(before, now))


def loss_difference(before: Losses, now: Losses) -> str | None:
    """Return the first step with another number, and by how much; None where all are equal bit for bit."""
    for old, new in zip(before, now, strict=False):
        if old.keys() != new.keys() or old["step"] != new["step"]:
            return f"step {new['step']} has {_described(new)}, before: step {old['step']} with {_described(old)}"
        for key in NUMBERS:
            if key in old and old[key].hex() != new[key].hex():
                gap = abs(new[key] - old[key])
                return f"step {new['step']}: {key} {new[key]!r}, before {old[key]!r}, max abs difference {gap:.3g}"
    if len(before) != len(now):
        return f"{len(now)} lines of losses, before {len(before)}"
    return None


def adapter_difference(before: Outcome, now: Outcome) -> str | None:
    """Return the first tensor that is another one, and by how much (of a stored outcome: the first file), or None."""
    if before.digests.keys() != now.digests.keys():
        return f"files {sorted(now.digests)}, before {sorted(before.digests)}"
    for file, old in before.digests.items():
        if old == now.digests[file]:
            continue
        if before.tensors is None or now.tensors is None:
            return f"{file}: other tensors than the stored ones"
        return f"{file}: {tensor_difference(before.tensors[file], now.tensors[file])}"
    return None


def tensor_difference(before: dict[str, Tensor], now: dict[str, Tensor]) -> str | None:
    """Return the first tensor by name that differs in a bit, and its largest difference; None where none does."""
    if before.keys() != now.keys():
        return f"tensors only now: {sorted(now.keys() - before)}, only before: {sorted(before.keys() - now)}"
    for name, old in sorted(before.items()):
        new = now[name]
        if (old.dtype, old.shape) != (new.dtype, new.shape):
            return f"{name} is {new.dtype} {tuple(new.shape)}, before {old.dtype} {tuple(old.shape)}"
        if not torch.equal(_raw(old), _raw(new)):
            gap = (new.double() - old.double()).abs().max().item()
            note = "" if gap > 0 and math.isfinite(gap) else " (a zero's sign, or numbers that are not finite)"
            return f"{name} differs, max abs difference {gap:.3g}{note}"
    return None


def _raw(tensor: Tensor) -> Tensor:
    return tensor.contiguous().flatten().view(torch.uint8)


def _described(line: dict[str, float]) -> str:
    return ", ".join(key for key in NUMBERS if key in line) or "nothing"
