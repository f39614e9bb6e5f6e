"""How dearly this machine gives memory: GB a second of pages that a process takes anew, and of those it holds.

python -m benchmarks.peers.fresh_pages

A library that gives its memory back after every step takes it anew in the next; on a virtual machine that may cost
more than the arithmetic, or next to nothing. One GB is mapped, written and unmapped; then one that is there is
written. It prints both as JSON, medians of five.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import statistics
import time

GIGABYTE = 10**9
REPEATS = 5


def seconds_of_pages() -> tuple[float, float]:
    """Return how long a GB of fresh pages takes until it is written and given back, and the same GB once it is held."""
    started = time.monotonic()
    pages = mmap.mmap(-1, GIGABYTE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    place = ctypes.addressof(view := ctypes.c_char.from_buffer(pages))
    ctypes.memset(place, 1, GIGABYTE)
    between = time.monotonic()
    ctypes.memset(place, 2, GIGABYTE)
    held = time.monotonic() - between
    del view  # a mapping that something points into cannot be closed
    pages.close()
    return time.monotonic() - started - held, held


def main() -> None:
    """Print both speeds."""
    fresh, held = zip(*(seconds_of_pages() for _ in range(REPEATS)), strict=True)
    print(json.dumps({"fresh": 1 / statistics.median(fresh), "held": 1 / statistics.median(held)}))


if __name__ == "__main__":
    main()
