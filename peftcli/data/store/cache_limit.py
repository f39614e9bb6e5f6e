"""The size of the cache of prepared rows: entries in use are marked, the others go oldest first beyond a limit."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

from peftcli.data.store.file_digests import RECORD
from peftcli.errors import UserError
from peftcli.file_lock import LockIsHeld, NoLocks, file_lock

LIMIT_VARIABLE = "PEFTCLI_CACHE_LIMIT"
"""Environment variable with the size of the cache beyond which entries are removed, such as 20GB."""

DEFAULT_LIMIT = "50GB"
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)
_KEY = re.compile(r"[0-9a-f]{32}")


def size_limit() -> int:
    """Return the limit in bytes.

    Raises:
        UserError: the environment variable holds no size.
    """
    text = os.environ.get(LIMIT_VARIABLE) or DEFAULT_LIMIT
    found = _SIZE.fullmatch(text.strip())
    if not found:
        raise UserError(
            f"the environment variable {LIMIT_VARIABLE} is {text!r}",
            suggestion="a size such as 20GB, 500MB or 0; it limits the cache of prepared rows",
        )
    return int(min(float(found[1]) * _UNITS[found[2].upper()], 2.0**63))  # a text of 400 digits is infinite


def mark_used(entry: Path) -> IO[bytes] | None:
    """Note that an entry is used now, and return what keeps it from being removed while it is open.

    None where the entry does not exist.
    """
    try:
        handle = open(entry / RECORD, "rb")  # noqa: SIM115  open as long as the rows are in use
    except OSError:
        return None
    with suppress(OSError):  # a file system without locks, or a cache of somebody else
        _lock(handle, exclusive=False)
        os.utime(entry / RECORD)
    return handle


def remove_oldest(root: Path, limit: int) -> list[Path]:
    """Remove the entries that were not used for longest until the others have at most `limit` bytes.

    Entries in use are never removed. What preparations that were killed left behind goes, too.

    Returns:
        the entries that were removed.
    """
    _remove_leftovers(root)
    entries = [(*facts, entry) for entry in root.iterdir() if (facts := _last_use_and_size(entry))]
    total, removed = sum(size for _, size, _ in entries), list[Path]()
    for _, size, entry in sorted(entries):
        if total <= limit:
            break
        if _removed(entry):
            total -= size
            removed.append(entry)
    return removed


def _last_use_and_size(entry: Path) -> tuple[float, int] | None:
    """Return when an entry was last used and its bytes, None where it is none, or another process removes it."""
    if not _KEY.fullmatch(entry.name):
        return None
    try:
        return (entry / RECORD).stat().st_mtime, sum(file.stat().st_size for file in entry.iterdir())
    except OSError:
        return None


def _removed(entry: Path) -> bool:
    """Remove an entry; return False where it is in use, or cannot be removed."""
    try:
        with open(entry / RECORD, "rb") as handle:
            _lock(handle, exclusive=True)
            doomed = entry.with_name(f".{entry.name}-removed")
            os.replace(entry, doomed)
    except OSError:
        return False
    shutil.rmtree(doomed, ignore_errors=True)
    return True


def _remove_leftovers(root: Path) -> None:
    for left in _unfinished(root):
        key = left.name[1:33]
        with suppress(LockIsHeld, NoLocks, OSError), file_lock(root / f"{key}.lock", wait=False):
            shutil.rmtree(left, ignore_errors=True)


def _unfinished(root: Path) -> Iterator[Path]:
    for entry in root.glob(".*-*"):
        if _KEY.fullmatch(entry.name[1:33]) and entry.name[33:34] == "-" and entry.is_dir():
            yield entry


def _lock(handle: IO[bytes], *, exclusive: bool) -> None:
    """Lock a file for readers or for one remover.

    Raises:
        OSError: it is held the other way, or the file system has no locks.
    """
    try:
        import fcntl
    except ImportError:  # Windows, where an open file is in nobody's way and cannot be renamed or removed
        return
    fcntl.flock(handle, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
