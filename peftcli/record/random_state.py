"""Random states: seeding a run, and keeping every generator that a run draws from."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from peftcli.layers.hashed_bits import Key
from peftcli.layers.row_draws import DrawnRows


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def seed_pass(rows: DrawnRows, device: torch.device, *, by_rows: bool, together: bool = False) -> None:
    """Seed every generator for the forward pass of a micro-batch: what it draws is no matter of what was drawn before.

    Most masks come from no generator (`layers.row_draws`). What is left is drawn for a whole micro-batch: layers that
    are skipped, by (seed, step), so that all processes skip the same; and the masks of a GPU's attention kernels and of
    compiled blocks, by (seed, step, first row).

    Args:
        by_rows: whether the base's dropout is drawn by rows; otherwise a generator draws it, on a CPU the same one that
            skips layers.
        together: whether all processes must skip the same layers, whatever else they draw alike by that: they gather a
            divided base layer by layer.
    """
    shared, own = rows.shared, rows.keys[0]
    random.seed(shared[0])
    np.random.seed(shared[0] % 2**32)
    masks = device.type == "cpu" and not (by_rows or together)
    torch.default_generator.manual_seed(_seed(own if masks else shared))
    if device.type == "cuda":
        torch.cuda.manual_seed(_seed(own))
    elif device.type == "mps":
        torch.mps.manual_seed(_seed(own))


def _seed(key: Key) -> int:
    return (key[0] % 2**31) << 32 | key[1] % 2**32


def random_states(*, gpus: bool = True) -> dict[str, Any]:
    """Return the state of every generator, as a tree of plain values, arrays and tensors.

    Args:
        gpus: those of CUDA, too; asking for them starts CUDA in this process.
    """
    states: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
    }
    if gpus and torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    if torch.backends.mps.is_available():
        states["mps"] = torch.mps.get_rng_state()
    return states


def restore_random_states(states: dict[str, Any]) -> None:
    """Put every generator back to `random_states`."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"][: torch.cuda.device_count()])
    if "mps" in states and torch.backends.mps.is_available():
        torch.mps.set_rng_state(states["mps"])


@contextmanager
def random_numbers_kept() -> Iterator[None]:
    """Put every generator back to where it was; those of GPUs only if this process had used CUDA before."""
    states = random_states(gpus=torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        restore_random_states(states)
