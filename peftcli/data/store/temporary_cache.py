"""A directory of prepared rows for this process alone, where no cache can be written: removed when it ends."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path

from peftcli.errors import UserError
from peftcli.file_lock import LockIsHeld, NoLocks, file_lock
from peftcli.locations import CACHE_VARIABLE
from peftcli.process_state import run_at_end

PREFIX = "peftcli-data-"
_ALIVE = "alive.lock"
"""Held as long as the process lives that made the directory."""


@cache
def temporary_cache() -> Path:
    """Return this process's directory below the system's temporary one, which goes when the process ends.

    It goes after an error, Ctrl-C and SIGTERM, too. What a process that was killed outright left is removed by the next
    one that needs such a directory.

    Raises:
        UserError: there is no temporary directory that can be written.
    """
    try:
        for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
            with suppress(OSError):
                _remove_if_left(left)
        made = Path(tempfile.mkdtemp(prefix=PREFIX))
    except OSError as error:
        remedy = f"name a directory: data.cache_dir in the recipe, ${CACHE_VARIABLE}, or $TMPDIR"
        raise UserError(f"there is no place for prepared rows: {error.strerror or error}", suggestion=remedy) from error
    held = ExitStack()
    with suppress(NoLocks):  # then a directory of a process that was killed stays
        held.enter_context(file_lock(made / _ALIVE, wait=False))

    def remove() -> None:
        held.close()
        shutil.rmtree(made, ignore_errors=True)

    run_at_end(remove)
    return made


def _remove_if_left(directory: Path) -> None:
    """Remove such a directory of this user whose process has ended."""
    ours = not hasattr(os, "getuid") or directory.lstat().st_uid == os.getuid()
    if ours and not directory.is_symlink() and (directory / _ALIVE).exists():
        with suppress(LockIsHeld, NoLocks), file_lock(directory / _ALIVE, wait=False):
            shutil.rmtree(directory, ignore_errors=True)
