"""How far the C library's heap grows under a sequence of blocks taken and given back (glibc's rules, simplified).

A process on a CPU holds more than what lives: a free block between two that live stays resident. `peft train` lets
glibc keep what is freed (`process_state.keep_freed_memory`), so that its memory is that of the heap at its largest.
glibc takes the smallest free block that is large enough, joins free neighbours, and else grows the heap
(https://sourceware.org/glibc/wiki/MallocInternals). Large blocks are mapped apart and given back at once.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable

UNIT, HEADER, LEAST = 64, 16, 32
"""Bytes: torch aligns its blocks to the first, glibc's own blocks to the second, and none is smaller than the third."""
MAPPED_AT_MOST, FIRST_MAPPED = 32 * 2**20, 128 * 2**10
"""Bounds of the size from which glibc maps a block apart, where nobody sets it: it grows with what is freed."""


class Heap:
    """The heap of one process.

    Args:
        mapped_from: size from which blocks are mapped apart; None leaves it to glibc, which adapts it, and which then
            gives the end of the heap back when twice as much is free there.

    Attributes:
        peak: bytes of the heap and of mapped blocks at their fullest moment.
    """

    def __init__(self, mapped_from: int | None) -> None:
        self.peak = 0
        self._adapts, self._threshold = mapped_from is None, mapped_from or FIRST_MAPPED
        self._end = self._mapped = 0
        self._by_size: list[tuple[int, int]] = []
        self._starts: dict[int, int] = {}
        self._ends: dict[int, int] = {}
        self._taken: dict[int, tuple[int, int]] = {}

    def play(self, events: Iterable[tuple[int, int]]) -> int:
        """Take and give back blocks; return the peak.

        Args:
            events: (number of the block, its size), the size negative where it is given back.
        """
        for block, size in events:
            if size > 0:
                self._take(block, -(-(size + HEADER // 2) // HEADER) * HEADER)
            elif block in self._taken:
                self._give(*self._taken.pop(block))
        return self.peak

    def _take(self, block: int, size: int) -> None:
        if size >= self._threshold:
            self._mapped += size
            self._taken[block] = (-1, size)
        else:
            self._taken[block] = (self._place(size), size)
        self.peak = max(self.peak, self._end + self._mapped)

    def _place(self, size: int) -> int:
        """Return where a block of this size goes: aligned, within a free one that leaves room to align it."""
        wanted = size + UNIT + LEAST
        index = bisect_left(self._by_size, (wanted, -1))
        if index < len(self._by_size):
            found, start = self._by_size[index]
            self._remove(start, found)
        else:  # the heap grows; a free block at its end grows with it
            last = self._ends.get(self._end)
            start = self._end if last is None else last
            if last is not None:
                self._remove(last, self._end - last)
            found = wanted
            self._end = start + wanted
        aligned = -(-(start + HEADER) // UNIT) * UNIT - HEADER
        if start < aligned < start + LEAST:
            aligned += UNIT
        for at, left in ((start, aligned - start), (aligned + size, start + found - aligned - size)):
            if left:
                self._add(at, left)
        return aligned

    def _give(self, start: int, size: int) -> None:
        if start < 0:
            self._mapped -= size
            if self._adapts and size <= MAPPED_AT_MOST:
                self._threshold = max(self._threshold, size)
            return
        before = self._ends.get(start)
        if before is not None:
            self._remove(before, start - before)
            start, size = before, size + start - before
        behind = self._starts.get(start + size)
        if behind is not None:
            self._remove(start + size, behind)
            size += behind
        if self._adapts and start + size == self._end and size > 2 * self._threshold:
            self._end = start
            return
        self._add(start, size)

    def _add(self, start: int, size: int) -> None:
        insort(self._by_size, (size, start))
        self._starts[start], self._ends[start + size] = size, start

    def _remove(self, start: int, size: int) -> None:
        self._by_size.pop(bisect_left(self._by_size, (size, start)))
        del self._starts[start], self._ends[start + size]
