"""How far the C library's heap grows: what a run takes and gives back, taken and given back in a process of its own.

A process on a CPU holds more than what lives: a free block between two that live stays resident, and `peft train` lets
glibc keep what is freed (`process_state.keep_freed_memory`). How much that is depends on the order and the sizes of the
blocks, so they are asked of the C library itself, in the order of the run. Nobody writes into them: that takes address
space and no memory. Beside each block are the small objects that torch makes for it, which lie in the gaps.

Run as `python heap_replay.py KEEPS`, with the events on standard input, it prints the bytes. It imports no torch.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import subprocess
import sys
from array import array
from collections.abc import Sequence

ALIGNED = 64
"""Bytes to which torch aligns its blocks on a CPU (c10/core/alignment.h)."""
BESIDE = (112, 208)
"""Bytes of the objects that describe a block: c10's StorageImpl and TensorImpl."""
GAPS = 1 / 3
"""Share of what is given back that lies in gaps in the end: small objects, which are not replayed, keep a large block
from finding its place again. Fitted: where a trace of malloc was replayed with every object, the heap came out 4% too
small, and with blocks alone by a quarter. Over eight trials on a llama the share was from a fifth to a half."""
PAGE = 4096


def heap_bytes(events: Sequence[tuple[int, int]], *, keeps: bool) -> int:
    """Return the bytes of the heap at its largest; 0 where the C library is another one than glibc.

    Args:
        events: (number of the block, its size) in order; the size is negative where it is given back.
        keeps: whether freed memory is kept, as in a run that leaves `fast_paths.allocator` on.
    """
    if platform.libc_ver()[0] != "glibc":
        return 0
    flat = array("q", [number for event in events for number in event])
    line = [sys.executable, "-I", "-S", __file__, str(int(keeps))]
    told = {name: value for name, value in os.environ.items() if name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    done = subprocess.run(line, input=flat.tobytes(), env=told, capture_output=True, check=True)
    return int(done.stdout)


def _replay(events: array[int], keeps: bool) -> int:
    """Take and give back the blocks; return the bytes of all pages that one ever lay on, which stay, and of gaps."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype = libc.sbrk.restype = ctypes.c_void_p
    libc.malloc.argtypes, libc.free.argtypes, libc.sbrk.argtypes = [ctypes.c_size_t], [ctypes.c_void_p], [ctypes.c_long]
    libc.posix_memalign.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
    if keeps:
        for option, value in ((-3, 1 << 30), (-1, 2**31 - 1), (-2, 64 * 2**20)):  # as `process_state` sets them
            libc.mallopt(option, value)
    # this function's own notes lie apart: they would part the blocks that are given back from each other
    numbers, sizes = events[::2], events[1::2]
    touched = mmap.mmap(-1, sum(size for size in sizes if size > 0) // PAGE + len(sizes) + 1)  # a byte for each page
    ones = b"1" * (max(sizes, default=0) // PAGE + 2)
    taken: list[tuple[int, int, list[int]] | None] = [None] * (max(numbers, default=0) + 1)
    place = ctypes.c_void_p()
    mapped = most_mapped = 0
    begin = _without_gaps(libc)
    for number, size in zip(numbers, sizes, strict=True):
        if size > 0:
            libc.posix_memalign(ctypes.byref(place), ALIGNED, size)
            at = place.value or 0
            taken[number] = (at, size, [libc.malloc(small) for small in BESIDE])
            if begin <= at < libc.sbrk(0):
                page, behind = (at - begin) // PAGE, (at + size - begin + PAGE - 1) // PAGE
                touched[page:behind] = memoryview(ones)[: behind - page]
            else:  # mapped apart, and given back at once
                mapped += size
                most_mapped = max(most_mapped, mapped)
        elif (block := taken[number]) is not None:
            at, own, beside = block
            taken[number] = None
            mapped -= 0 if begin <= at < libc.sbrk(0) else own
            for each in (at, *beside):
                libc.free(each)
    grown = touched[: (libc.sbrk(0) - begin) // PAGE + 1].count(b"1") * PAGE
    stays = sum(block[1] for block in taken if block is not None and begin <= block[0] < libc.sbrk(0))
    return grown + round(GAPS * max(0, grown - stays)) + most_mapped


def _without_gaps(libc: ctypes.CDLL) -> int:
    """Fill what is free of this process's heap; return the page on which all that is taken later begins.

    What Python left free differs by its version, the environment and the paths, and small objects would lie there.
    """
    end: int = libc.sbrk(0)
    for size in (*(2**power for power in range(16, 10, -1)), *range(1024, 0, -16)):
        while (last := libc.malloc(size) or end) < end:
            pass
    libc.malloc(2 * PAGE - (last + 32) % PAGE - 8)  # 32: of the last one; 8: what glibc notes of a block
    return (last + 32) // PAGE * PAGE + 2 * PAGE


if __name__ == "__main__":
    given = array("q")
    given.frombytes(sys.stdin.buffer.read())
    print(_replay(given, sys.argv[1] == "1"))
