"""How the model lies in several processes: whole in each of them, or its blocks divided among them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from peftcli.recipe.schema import DistributedSpec

USE_FSDP = "ACCELERATE_USE_FSDP"
"""Environment variable by which `accelerate launch` says that its config asks for FSDP."""


@dataclass(frozen=True)
class Strategy:
    """What was decided for the processes of a run.

    Args:
        name: `ddp`: each process holds the whole base; `fsdp`: a share of each block.
        cpu_offload: whether the shares wait in the host's memory.
        reshard_after_forward: whether a block's other shares are dropped between its forward and backward pass.
        note: what of the recipe has no effect, and why.
    """

    name: Literal["ddp", "fsdp"] = "ddp"
    cpu_offload: bool = False
    reshard_after_forward: bool = True
    note: str | None = None

    @property
    def sharded(self) -> bool:
        """Whether the base is divided among the processes."""
        return self.name == "fsdp"


def choose_strategy(spec: DistributedSpec, processes: int, device_type: str) -> Strategy:
    """Return how so many processes share the work.

    Args:
        spec: of the recipe; `auto` is ddp, unless Accelerate's config asks for FSDP.
        device_type: where they compute.
    """
    wanted = spec.strategy
    if wanted == "auto":
        wanted = "fsdp" if os.environ.get(USE_FSDP, "").lower() in ("1", "true", "yes") else "ddp"
    if wanted == "ddp":
        idle = "distributed.cpu_offload" if spec.cpu_offload else None
        return Strategy(note=None if idle is None else f"{idle} has no effect: the base is whole in each process (ddp)")
    if processes == 1:
        return Strategy(
            note="distributed.strategy: fsdp has no effect: there is one process, which holds the whole base"
        )
    offloads = spec.cpu_offload and device_type != "cpu"
    note = None
    if spec.cpu_offload and not offloads:
        note = "distributed.cpu_offload has no effect: the shares of the base are in the memory of the CPU already"
    return Strategy("fsdp", offloads, spec.reshard_after_forward, note)
