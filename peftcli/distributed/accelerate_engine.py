"""Accelerate's `Accelerator` of a run, and its state of the whole process, which is put back when the run is over.

The recipe decides precision, accumulation and strategy, so that the variables in which `accelerate launch` tells what
its config says are not read here: `launching` has compared them with the recipe by then. The model is not wrapped
(`prepare_model`): its gradients are summed by `World.sum_gradients`, which keeps the trained tensors whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

import torch

from peftcli.process_state import environment_without

if TYPE_CHECKING:
    from accelerate import Accelerator

MixedPrecision = Literal["no", "bf16", "fp16"]
"""Accelerate's names for the dtype of products; `no` computes in the dtype of the weights."""

OF_A_CONFIG = ("ACCELERATE_USE_", "ACCELERATE_DYNAMO_", "ACCELERATE_MIXED_PRECISION", "PARALLELISM_CONFIG_", "FSDP_")
"""Variables, or how they begin, in which a config of Accelerate reaches the processes."""
OF_A_LAUNCHER = ("LOCAL_RANK", "RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "PMI_", "OMPI_COMM_", "MV2_COMM_")
"""Variables in which a launcher tells of processes; one process on its own joins no group."""


def make_accelerator(device: torch.device, precision: MixedPrecision, processes: int) -> Accelerator:
    """Return Accelerate's engine for a run; it replaces that of an earlier run in this process.

    Gradients are accumulated by the loop, which divides once by the count of the whole step: Accelerate's own number of
    steps is 1, or its `backward` would divide again.

    Args:
        device: where the run computes.
        processes: of the run; several have joined their group before.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import GradientAccumulationPlugin

    AcceleratorState._reset_state(reset_partial_state=processes == 1)
    with environment_without(OF_A_CONFIG if processes > 1 else OF_A_CONFIG + OF_A_LAUNCHER):
        return Accelerator(
            mixed_precision=precision,
            cpu=device.type == "cpu",
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        )


@contextmanager
def accelerate_state_kept() -> Iterator[None]:
    """Put back what Accelerate keeps for the whole process: a caller's own `Accelerator` may have set it.

    Processes that have found each other before stay a group.
    """
    from accelerate.state import AcceleratorState, GradientState, PartialState

    before = [(kind, dict(kind._shared_state)) for kind in (PartialState, AcceleratorState, GradientState)]
    try:
        yield
    finally:
        for kind, state in before:
            kind._shared_state.clear()
            kind._shared_state.update(state)
