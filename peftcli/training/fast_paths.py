"""Which of the faster ways to compute the same a run's forward passes take."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

import torch

from peftcli.layers.cpu_paths import CpuPaths
from peftcli.layers.lowrank import plain_lowrank
from peftcli.recipe.schema import Recipe


def fast_paths(recipe: Recipe, device: torch.device) -> Callable[[], AbstractContextManager[None]]:
    """Return what makes the context of a training forward pass, and of its recomputation under checkpointing.

    `model.attn_implementation: sdpa` keeps torch's attention. Compiled blocks choose for themselves.
    """
    spec = recipe.training
    switches = spec.fast_paths
    attention = switches.attention and recipe.model.attn_implementation == "auto"
    swaps = device.type == "cpu" and not spec.torch_compile and (attention or switches.dropout)

    @contextmanager
    def context() -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(plain_lowrank(not switches.lowrank))
            if swaps:
                stack.enter_context(CpuPaths(attention=attention, dropout=switches.dropout))
            yield

    return context
