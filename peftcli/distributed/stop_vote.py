"""Whether any process of a run was asked to stop: one answer for all of them, at the same step."""

from __future__ import annotations

import torch
from torch import Tensor

from peftcli.distributed.processes import World
from peftcli.stop_signals import StopRequest


class StopVote:
    """Asks all processes after each step, without a message of its own: the question travels with the gradients.

    A GPU works behind the program, and reading a fresh number would wait for it. There the answer is read one step
    later, when it has long been copied.

    Args:
        stop: what this process was asked for.
    """

    def __init__(self, world: World, stop: StopRequest) -> None:
        self._world, self._stop = world, stop
        self._sum = torch.zeros((), device=world.device)
        self._copied: tuple[Tensor, torch.cuda.Event] | None = None

    def cast(self) -> Tensor | None:
        """Return the number to sum over the processes in this step, in place; None for one process."""
        return None if self._world.size == 1 else self._sum.fill_(float(self._stop.requested))

    def asked(self) -> bool:
        """Return whether to stop after this step; once a step, when the sum is under way."""
        if self._world.size == 1:
            return self._stop.requested
        if self._world.device.type != "cuda":
            return bool(self._sum)
        before = self._copied
        host = torch.empty((), pin_memory=True)
        host.copy_(self._sum, non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        self._copied = host, event
        if before is None:
            return False
        before[1].synchronize()
        return bool(before[0])
