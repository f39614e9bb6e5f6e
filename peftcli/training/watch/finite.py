"""Numbers that are not finite: found before anything is kept of them.

Losses and gradient norms are watched at every step, parameters before an evaluation, a checkpoint and the result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from peftcli.distributed.processes import World
from peftcli.distributed.whole_tensors import own_part
from peftcli.errors import UserError
from peftcli.layers.finite_tensors import first_not_finite

REMEDY = "lower training.learning_rate, add training.warmup_steps, or set training.bf16: false"


class NotFinite(UserError):
    """A loss, a gradient or a parameter is NaN or infinite: the training diverged."""


class FiniteWatch:
    """Remembers the first step whose loss or gradient norm was not finite; on CUDA without waiting for the device.

    Args:
        world: of the run; its processes stop together.
        norms: whether a norm that is not finite counts; with loss scaling (float16) such a step is skipped instead.
    """

    def __init__(self, world: World, *, norms: bool) -> None:
        self._world, self._norms = world, norms
        self._first = torch.zeros(2, device=world.device)  # the steps of the loss and of the gradient; 0: none

    def see(self, loss: Tensor, norm: Tensor, step: int) -> None:
        """Look at a step before it is taken.

        Args:
            loss: sum of the losses since the last logged step, on the device.
            norm: of the gradient, the same on every process.
            step: counted from 1.

        Raises:
            NotFinite: one is not finite, on a CPU, where asking is free; elsewhere `check` raises it.
        """
        bad = torch.stack([~torch.isfinite(loss), ~torch.isfinite(norm.to(loss)) & self._norms])
        self._first = torch.where((self._first == 0) & bad, float(step), self._first)
        if loss.device.type == "cpu" and (self._world.size == 1 or (self._norms and not math.isfinite(float(norm)))):
            self._raise()

    def check(self) -> None:
        """Look at what was seen; every process must call this.

        Raises:
            NotFinite: a loss or a gradient was not finite; names the step.
        """
        if self._world.any(bool(self._first.any())):
            self._raise(always=True)

    def _raise(self, *, always: bool = False) -> None:
        found = [
            (int(step), what) for step, what in zip(self._first.tolist(), ("loss", "gradient"), strict=True) if step
        ]
        if found or always:
            step, what = min(found, key=lambda one: one[0]) if found else (None, "loss of another process")
            where = "" if step is None else f" at step {step}"
            raise NotFinite(f"the {what} is not finite{where}", suggestion=REMEDY)


def require_finite(tensors: Mapping[str, Tensor], step: int, world: World, what: str) -> None:
    """Refuse to go on with tensors that are not finite; every process must call this.

    Args:
        tensors: by name.
        step: after which they were looked at.
        what: is not done, such as `no checkpoint was written`.

    Raises:
        NotFinite: names the step and the first tensor.
    """
    name = first_not_finite({name: own_part(tensor) for name, tensor in tensors.items()})
    if world.any(name is not None):
        holder = f"the parameter {name}" if name is not None else "a parameter of another process"
        raise NotFinite(f"{holder} is not finite after step {step}: {what}", suggestion=REMEDY)
