"""The processes of a run, through Accelerate: rank, size, sums and gathers. One process needs no special case."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from peftcli.distributed.launching import is_launched

BUCKET_BYTES = 64 * 2**20
"""Gradients are summed in flat buckets of this size: few messages, bounded memory."""

T = TypeVar("T")


class World:
    """One process among `size`.

    A process on its own starts nothing. Among several, Accelerate's `PartialState` joins the process group, which
    stays for as long as the process lives.

    Args:
        device: where this process computes; with several CUDA devices, each process takes its own.
    """

    def __init__(self, device: torch.device) -> None:
        self.rank, self.size, self.device = 0, 1, device
        if is_launched():
            from accelerate import PartialState

            self._state = PartialState(cpu=device.type == "cpu")
            self.rank, self.size = int(self._state.process_index), int(self._state.num_processes)
            self.device = self._state.device if device.type == "cuda" else device

    @property
    def is_main(self) -> bool:
        """Whether this process writes and reports."""
        return self.rank == 0

    def wait(self) -> None:
        """Wait until every process has come to this point."""
        if self.size > 1:
            self._state.wait_for_everyone()

    def main_first(self, function: Callable[[], T]) -> T:
        """Return what a function gives: the main process calls it first, then the others do."""
        if not self.is_main:
            self.wait()
        result = function()
        if self.is_main:
            self.wait()
        return result

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum of `value` over the processes."""
        if self.size > 1:
            torch.distributed.all_reduce(value)
        return value

    def any(self, flag: bool) -> bool:
        """Return whether `flag` is true in any process."""
        if self.size == 1:
            return flag
        return bool(self.sum(torch.tensor(float(flag), device=self.device)).item())

    def gather(self, value: Any) -> list[Any]:
        """Return every process's `value` (any plain data), in order of rank."""
        if self.size == 1:
            return [value]
        from accelerate.utils import gather_object

        gathered: list[Any] = gather_object([value])
        return gathered

    def broadcast(self, value: Any) -> Any:
        """Return the main process's `value`."""
        if self.size == 1:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum gradients over the processes, in flat buckets; a parameter without one counts as zero."""
        if self.size == 1:
            return
        bucket: list[Tensor] = []
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if bucket and (bucket[0].dtype != parameter.grad.dtype or _bytes(bucket) > BUCKET_BYTES):
                self._sum_bucket(bucket)
                bucket = []
            bucket.append(parameter.grad)
        if bucket:
            self._sum_bucket(bucket)

    def _sum_bucket(self, gradients: list[Tensor]) -> None:
        flat = self.sum(torch.cat([gradient.flatten() for gradient in gradients]))
        start = 0
        for gradient in gradients:
            gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
            start += gradient.numel()


def _bytes(tensors: list[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
