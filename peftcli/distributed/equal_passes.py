"""Equally many passes in every process: the weights of a divided base are gathered by all of them together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from typing import TypeVar

from peftcli.distributed.processes import World

T = TypeVar("T")


def equal_passes(
    world: World, own: Sequence[T], spare: T | None, stopping: Callable[[], bool]
) -> Iterator[tuple[T, bool]]:
    """Yield what this process is to pass through the model, and whether the result counts, until a stop is asked for.

    With a whole base these are its own batches. With a divided one those of a process that has fewer are followed by
    `spare` ones, whose results are for nothing, and all processes stop before the same pass.

    Args:
        own: this process's batches.
        spare: small, and the same in each process; None where no process has any.
        stopping: whether this process was asked to stop.
    """
    if not world.strategy.sharded:
        yield from ((batch, True) for batch in takewhile(lambda _batch: not stopping(), own))
        return
    for index in range(max(world.gather(len(own)))):
        if world.any(stopping()):
            return
        if index < len(own):
            yield own[index], True
        elif spare is not None:
            yield spare, False
