"""Let the C library keep freed memory between the steps of a run on a CPU.

Saves time: glibc gives large blocks back to the system as soon as they are free, and every step then takes the same
memory anew, page by page (a page fault for each 4 KiB, a tenth of a float32 step). Costs nothing at the peak; between
peaks the process holds what it held there. Other C libraries and systems are left as they are.
"""

from __future__ import annotations

import ctypes
import os
import platform

# malloc.h
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_LARGEST_BLOCK = 1 << 30  # larger ones are mapped and given back as before
_KEPT = 2**31 - 1  # bytes at the top of the heap; mallopt takes a C int
_TOP_PAD = 64 * 2**20  # grown by at once


def keep_freed_memory() -> bool:
    """Set glibc's thresholds for this process; return whether there was something to set.

    Thresholds in the environment (MALLOC_TRIM_THRESHOLD_, ...) are respected.
    """
    if platform.libc_ver()[0] != "glibc" or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    libc = ctypes.CDLL(None)
    options = {_M_MMAP_THRESHOLD: _LARGEST_BLOCK, _M_TRIM_THRESHOLD: _KEPT, _M_TOP_PAD: _TOP_PAD}
    return all(libc.mallopt(option, value) == 1 for option, value in options.items())
