"""Loops over equal slices of rows: each pass takes as much memory as the one before it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_ENOUGH: ContextVar[bool] = ContextVar("passes that show the memory of a loop are enough", default=False)


@contextmanager
def passes_that_show_memory() -> Iterator[None]:
    """Take only those passes of a loop over `slices` that show what memory all of them take: values are wrong."""
    before = _ENOUGH.set(True)
    try:
        yield
    finally:
        _ENOUGH.reset(before)


def slices(length: int, size: int) -> Iterator[slice]:
    """Yield slices of `size` that cover `length` rows, the last one shorter.

    Inside `passes_that_show_memory` these are the first one, the second one, which finds what the first one has left,
    and the last one.
    """
    starts = range(0, length, size)
    shown = sorted({*starts[:2], *starts[-1:]}) if _ENOUGH.get() else starts
    return (slice(start, min(start + size, length)) for start in shown)
