"""The processes of a run, through Accelerate: rank, size, sums and gathers. One process needs no special case."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar, cast

import torch
from torch import Tensor, nn

from peftcli.distributed.accelerate_engine import MixedPrecision, make_accelerator
from peftcli.distributed.devices import check_devices
from peftcli.distributed.hang_watch import HangWatch
from peftcli.distributed.launch.schedulers import number, torch_variables
from peftcli.distributed.launching import SIZES, is_launched
from peftcli.distributed.strategy import Strategy, choose_strategy
from peftcli.distributed.whole_tensors import is_share
from peftcli.errors import PeerLost
from peftcli.process_state import environment_without
from peftcli.recipe.schema import DistributedSpec
from peftcli.shown_text import first_line

if TYPE_CHECKING:
    from accelerate import Accelerator, PartialState

BUCKET_BYTES = 64 * 2**20
"""Gradients are summed in flat buckets of this size: few messages, bounded memory."""

GROUP_HOURS = 24.0
"""How long processes wait for each other: one may prepare rows, write a model or upload it meanwhile. Torch's own 10 or
30 minutes would end the run. A process that has ended is noticed at once, and a step has a bound of its own."""

JOIN_SECONDS = 600.0
"""How long processes look for each other at the start."""
_STANDS_STILL = (
    "--resume continues from the last checkpoint; where a step does take so long, raise distributed.timeout (seconds)"
)
_NOT_THERE = f"start all of them, where MASTER_ADDR can be reached; for a run of one process, unset {', '.join(SIZES)}"

T = TypeVar("T")


class World:
    """One process among `size`.

    A process on its own starts nothing. Among several, Accelerate's `PartialState` joins the process group, which
    stays for as long as the process lives. Who trains uses `accelerator`, which is made when it is first asked for.

    Args:
        device: where this process computes; with several CUDA devices, each process takes its own.
        spec: the recipe's `distributed` block; by default each process holds the whole base.

    Attributes:
        strategy: how the model lies in the processes.
        watch: bounds the time of a step, in which each process waits for the others.

    Raises:
        PeerLost: the processes that a launcher's variables tell of do not find each other; by each method that waits
            for the others, too, when one of them has ended.
    """

    def __init__(self, device: torch.device, spec: DistributedSpec | None = None) -> None:
        self.rank, self.size, self.device = 0, 1, device
        self._precision: MixedPrecision = "no"
        self._accelerator: Accelerator | None = None
        if is_launched():
            self._state = _join(device)
            self.rank, self.size = int(self._state.process_index), int(self._state.num_processes)
            self.device = self._state.device if device.type == "cuda" else device
        seconds = None if self.size == 1 else float((spec or DistributedSpec()).timeout)
        self.watch = HangWatch(seconds, _STANDS_STILL)
        self.strategy = Strategy() if spec is None else choose_strategy(spec, self.size, device.type)

    @property
    def is_main(self) -> bool:
        """Whether this process writes and reports."""
        return self.rank == 0

    @property
    def accelerator(self) -> Accelerator:
        """Accelerate's engine: autocast, backward passes with loss scaling, the optimizer's steps, clipping."""
        if self._accelerator is None:
            self._accelerator = make_accelerator(self.device, self._precision, self.size)
        return self._accelerator

    def compute_in(self, precision: MixedPrecision) -> None:
        """Decide the dtype of the products in a training step; a new `accelerator` computes in it."""
        self._precision, self._accelerator = precision, None

    def wait(self) -> None:
        """Wait until every process has come to this point."""
        if self.size > 1:
            with _among_others():
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
        """Sum `value` over the processes in place, and return it."""
        if self.size > 1:
            with _among_others():
                torch.distributed.all_reduce(value)
        return value

    def any(self, flag: bool) -> bool:
        """Return whether `flag` is true in any process."""
        if self.size == 1:
            return flag
        return bool(self.sum(torch.tensor(float(flag), device=self.device)).item())

    def gather(self, value: T) -> list[T]:
        """Return every process's `value` (any plain data), in order of rank."""
        if self.size == 1:
            return [value]
        from accelerate.utils import gather_object

        with _among_others():
            gathered: list[T] = gather_object([value])
        return gathered

    def broadcast(self, value: T) -> T:
        """Return the main process's `value` (any plain data)."""
        if self.size == 1:
            return value
        from accelerate.utils import broadcast_object_list

        with _among_others():
            received: T = broadcast_object_list([value])[0]
        return received

    def from_main(self, function: Callable[[], T]) -> T:
        """Return what a function gives in the main process (any plain data), which alone calls it."""
        return cast("T", self.broadcast(function() if self.is_main else None))

    def make_equal(self, tensors: Iterable[Tensor]) -> None:
        """Give every process the main one's values of these tensors, in place; the same ones in each process."""
        if self.size == 1:
            return
        for bucket in in_buckets(tensors):
            flat = torch.cat([tensor.detach().flatten() for tensor in bucket])
            with _among_others():
                torch.distributed.broadcast(flat.view(torch.uint8), 0)  # bytes: of any dtype, and bit for bit
            _copy_back(flat, bucket)

    def sum_gradients(self, parameters: Iterable[nn.Parameter], ask: Tensor | None = None) -> None:
        """Sum gradients over the processes, in flat buckets; one that is None in some processes counts as zero there.

        One that is None in all of them (an expert that no row chose, a layer that was skipped) stays None, as in one
        process: the optimizer leaves its parameter alone.

        Those of a divided base are left out: FSDP2 has summed them.

        Args:
            ask: one number that is summed besides, in place; it travels with the last bucket, in that one's dtype.
        """
        if self.size == 1:
            return
        own = [parameter for parameter in parameters if not is_share(parameter)]  # FSDP2 has summed a share
        without = [place for place, parameter in enumerate(own) if parameter.grad is None]
        for parameter in (own[place] for place in without):
            parameter.grad = torch.zeros_like(parameter)
        reached = torch.ones(len(own))
        reached[without] = 0.0
        reached = reached.to(self.device, non_blocking=True)
        beside = [reached] if ask is None else [reached, ask]
        buckets = list(in_buckets(parameter.grad for parameter in own if parameter.grad is not None))
        buckets[-1:] = [[*(buckets[-1] if buckets else ()), *beside]]
        for bucket in buckets:
            flat = self.sum(torch.cat([tensor.flatten().to(bucket[0].dtype) for tensor in bucket]))
            _copy_back(flat, bucket)
        if without:  # only then is the device waited for
            for place, somewhere in zip(without, reached[without].tolist(), strict=True):
                parameter = own[place]
                parameter.grad = parameter.grad if somewhere else None


def in_buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Yield tensors in groups of one dtype that are large enough for one message each."""
    bucket: list[Tensor] = []
    held = 0  # bytes
    for tensor in tensors:
        if bucket and (bucket[0].dtype != tensor.dtype or held > BUCKET_BYTES):
            yield bucket
            bucket, held = [], 0
        bucket.append(tensor)
        held += tensor.nbytes
    if bucket:
        yield bucket


@torch.no_grad()
def _copy_back(flat: Tensor, tensors: list[Tensor]) -> None:
    start = 0
    for tensor in tensors:
        tensor.copy_(flat[start : start + tensor.numel()].view_as(tensor))
        start += tensor.numel()


def _join(device: torch.device) -> PartialState:
    """Join the processes that a launcher started; the environment stays as the launcher made it."""
    from accelerate import PartialState
    from accelerate.utils import InitProcessGroupKwargs

    waits = InitProcessGroupKwargs(timeout=timedelta(hours=GROUP_HOURS)).to_kwargs()
    watch = HangWatch(JOIN_SECONDS, _NOT_THERE)
    watch.begin("connecting the processes of this run")
    try:
        with environment_without((), torch_variables(os.environ)):
            check_devices(device, number(os.environ, "LOCAL_WORLD_SIZE", 1))
            if device.type == "cuda" and not torch.distributed.is_initialized():
                # gloo beside NCCL, for plain data and for weights that are kept in the host's memory
                torch.distributed.init_process_group("cpu:gloo,cuda:nccl", **waits)
            return PartialState(cpu=device.type == "cpu", **waits)
    except (RuntimeError, ValueError) as error:
        raise PeerLost(
            f"the processes of this run could not connect to each other: {_without_source(error)}",
            suggestion="start them with `torchrun`, or with `peft train --num-processes N`; for a run of one process, "
            f"unset {', '.join(SIZES)}",
        ) from error
    finally:
        watch.close()


@contextmanager
def _among_others() -> Iterator[None]:
    """Translate what torch raises where another process has ended.

    Raises:
        PeerLost: says so; the process that ended knows why.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise PeerLost(
            f"another process of this run has ended, or cannot be reached: {_without_source(error)}",
            suggestion="look for its own message",
        ) from error


def _without_source(error: Exception) -> str:
    """Return the first line of what a library says, without the place in its sources."""
    return re.sub(r"^\[\S+?:\d+\] ", "", first_line(error))
