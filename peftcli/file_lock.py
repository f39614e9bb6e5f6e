"""A lock file that one process at a time holds, on file systems that have locks."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_NOT_OFFERED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}
"""What the system answers where a file system (some network mounts) has no locks."""


class LockIsHeld(Exception):
    """Another process holds the lock."""


class NoLocks(Exception):
    """The file system has no locks."""


@contextmanager
def file_lock(path: Path, *, wait: bool) -> Iterator[None]:
    """Hold the lock within the context; its file is removed afterwards.

    Args:
        path: of the lock file; its directory exists.
        wait: for another holder to let go.

    Raises:
        LockIsHeld: another process, or another thread of this one, holds it, and `wait` is false.
        NoLocks: there are none here.
        OSError: the file cannot be made.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path, fallback_to_soft=False)  # a mere file would stay behind after a crash
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout as error:
        raise LockIsHeld(path) from error
    except OSError as error:
        if error.errno in _NOT_OFFERED:
            path.unlink(missing_ok=True)
            raise NoLocks(path) from error
        raise
    try:
        yield
    finally:
        with suppress(PermissionError):  # Windows removes no open file: filelock does it there, after the release
            path.unlink(missing_ok=True)  # while it is held: later it may be another's
        lock.release()
