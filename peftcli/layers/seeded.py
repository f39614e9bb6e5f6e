"""Random values that depend on a seed alone, and that move no generator of the caller."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int, devices: Iterable[torch.device] = ()) -> Iterator[None]:
    """Draw from generators that start at `seed`, and put them back.

    Args:
        seed: of the CPU's generator, and of those of `devices`.
        devices: on which values are drawn, besides the CPU; those that are no CUDA devices are passed over.
    """
    gpus = [device for device in devices if device.type == "cuda"]
    with torch.random.fork_rng(gpus):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would move the GPUs that are not put back, too
        for gpu in gpus:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(seed)
        yield
