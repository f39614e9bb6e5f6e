"""Batches that do not fit into memory are computed in halves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from peftcli.distributed.memory_errors import is_out_of_memory, release

T = TypeVar("T")


def in_halves(
    batch: Sequence[int], compute: Callable[[Sequence[int]], T], *, allowed: bool
) -> Iterator[tuple[Sequence[int], T]]:
    """Yield a batch with what `compute` gives for it; its parts, in order, where it does not fit into memory.

    An evaluation has no estimate of its memory: what a batch takes beside training's state shows when it is computed.

    Args:
        batch: numbers of rows.
        compute: raises an error of memory where they do not fit; it is called again for each half.
        allowed: whether a batch may be halved; not where other processes wait for as many passes.

    Raises:
        Exception: what `compute` raises for a single row, or where nothing may be halved.
    """
    waiting = [batch]
    while waiting:
        chosen = waiting.pop()
        try:
            found = compute(chosen)
        except Exception as error:
            if len(chosen) == 1 or not allowed or not is_out_of_memory(error):
                raise
            release(error)  # its frames hold what the batch had so far
            middle = (len(chosen) + 1) // 2
            waiting += [chosen[middle:], chosen[:middle]]
        else:
            yield chosen, found
