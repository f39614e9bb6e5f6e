"""One process at a time trains into a run's directory: its lock, and a note of who holds it."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from peftcli.errors import UserError
from peftcli.file_lock import LockIsHeld, NoLocks, file_lock

LOCK_FILE = ".lock"
HOLDER_FILE = ".lock_holder"
"""Beside the lock file, which Windows lets nobody else read."""
NO_LOCK_OPTION = "--no-lock"


class RunIsHeld(UserError):
    """Another process trains into the directory."""


@contextmanager
def run_lock(directory: Path) -> Iterator[None]:
    """Hold a run's directory within the context.

    Args:
        directory: it exists.

    Raises:
        RunIsHeld: another process holds it.
        UserError: its file system has no locks.
        OSError: nothing can be written there.
    """
    holder = directory / HOLDER_FILE
    with ExitStack() as stack:
        try:
            stack.enter_context(file_lock(directory / LOCK_FILE, wait=False))
        except LockIsHeld:
            raise RunIsHeld(
                f"another process is training into {directory}{_named(holder)}",
                suggestion="wait for it, or choose another output_dir",
            ) from None
        except NoLocks:
            raise UserError(
                f"output_dir {directory} is on a file system without locks, which keep two runs from writing into it",
                suggestion=f"choose another output_dir, or use {NO_LOCK_OPTION} if nothing else trains into this one",
            ) from None
        stack.callback(holder.unlink, missing_ok=True)
        holder.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
        yield


def _named(holder: Path) -> str:
    """Return who holds a lock, as a part of a sentence; nothing if that cannot be read."""
    try:
        return f": {holder.read_text(encoding='utf-8')}"
    except (OSError, ValueError):  # it starts or ends at this moment
        return ""
