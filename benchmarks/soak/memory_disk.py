"""A file system in memory whose size can be set, so that a disk is really full; where mounting is allowed."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NEW_NAMESPACE, _REMOUNT, _RECURSIVE, _PRIVATE = 0x20000, 0x20, 0x4000, 0x40000
_LARGE = 2**30


class MemoryDisk:
    """A mounted file system; it is this process's and its children's alone, and goes when they end."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def mounted(cls, path: Path) -> MemoryDisk | None:
        """Mount one on an empty directory; None where that is not allowed."""
        if not sys.platform.startswith("linux"):
            return None
        system = ctypes.CDLL(None, use_errno=True)
        if system.unshare(_NEW_NAMESPACE) or system.mount(None, b"/", None, _RECURSIVE | _PRIVATE, None):
            return None
        return cls(path) if _mount(path, 0, _LARGE) else None

    @contextmanager
    def room(self, size: int) -> Iterator[None]:
        """Leave `size` more bytes, rounded up to pages, within the context."""
        used = os.statvfs(self.path)
        _mount(self.path, _REMOUNT, (used.f_blocks - used.f_bfree) * used.f_frsize + size)
        try:
            yield
        finally:
            _mount(self.path, _REMOUNT, _LARGE)


def _mount(path: Path, flags: int, size: int) -> bool:
    system = ctypes.CDLL(None, use_errno=True)
    return system.mount(b"tmpfs", os.fsencode(path), b"tmpfs", ctypes.c_ulong(flags), f"size={size}".encode()) == 0
