"""Write files and directories so that a crash leaves them complete or absent: write beside, sync, rename.

What the system refuses (a full disk, a directory without permission) is a `CannotWrite`; nothing half written is left
then, and what was there before is there still.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Literal

from peftcli.write_errors import writing

PARTIAL = ".partial-"
"""Prefix of what is being written. Anything with this prefix after a crash can be deleted."""

_REPLACED = "replaced-"
"""What follows the prefix in the name of a whole directory that is being replaced."""

_LONGEST_NAME = 255
"""Bytes that common file systems take as one name."""


def write_text(path: Path, text: str, *, instead: str = "write to another place") -> None:
    """Replace a file by `text`, in UTF-8; after a crash it has the old or the new text. A link is replaced, too.

    Raises:
        CannotWrite: the system refuses; `instead` is what the user can do.
    """
    with writing(path, instead), _parents_made(path), _replaced(path) as file:
        file.write(text)


def append_text(path: Path, text: str, *, instead: str = "write to another place") -> None:
    """Add `text` at the end of a file, in UTF-8, or leave the file as it was.

    Raises:
        CannotWrite: the system refuses; `instead` is what the user can do.
    """
    with writing(path, instead):
        size = path.stat().st_size if path.is_file() else None
        try:
            with _open_text(path, "a") as file:
                file.write(text)
        except OSError:
            with suppress(OSError):
                path.unlink(missing_ok=True) if size is None else os.truncate(path, size)
            raise


@contextmanager
def new_file(path: Path, *, instead: str) -> Iterator[IO[str]]:
    """Yield a text file that the user named, to be written: it has its new text when the block ends without an error.

    A link is followed. A device or a pipe is written as it is.

    Raises:
        CannotWrite: the system refuses; `instead` is what the user can do.
    """
    with writing(path, instead), _parents_made(path):
        target = Path(os.path.realpath(path))
        device = target.exists() and not target.is_file()
        with _open_text(target, "w") if device else _replaced(target) as file:
            yield file


def _open_text(path: Path, mode: Literal["a", "w"]) -> IO[str]:
    """Open a file of UTF-8. Half of a surrogate pair, which UTF-8 lacks, becomes what JSON writes for it: `\\ud83d`."""
    return open(path, mode, encoding="utf-8", errors="backslashreplace", newline="\n")


@contextmanager
def _replaced(path: Path) -> Iterator[IO[str]]:
    """Yield a text file beside `path`, which is renamed to `path` when the block ends without an error."""
    partial = _beside(path)
    try:
        with _open_text(partial, "w") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise
    sync_directory(path.parent)


@contextmanager
def new_directory(path: Path, *, instead: str = "write to another place", replace: bool = True) -> Iterator[Path]:
    """Yield an empty directory beside `path`, which is renamed to `path` when the block ends without an error.

    A directory that exists is replaced. That takes two renames; a crash between them leaves nothing at `path`, and the
    old directory under a partial name (`put_back`).

    Args:
        path: of the directory.
        instead: what the user can do where the system refuses.
        replace: False refuses to take the place of a directory that holds something.

    Raises:
        CannotWrite: the system refuses; `instead` is what the user can do.
    """
    with writing(path, instead), _parents_made(path):
        partial, old = _beside(path), _beside(path, _REPLACED)
        if not replace:
            _require_free(path)
        for stale in (partial, old):
            _remove(stale)
        partial.mkdir()
        try:
            yield partial
            sync_tree(partial)
            if not replace:
                _require_free(path)
            _put_in_place(partial, path, old)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        sync_directory(path.parent)
        _remove(old)


def _put_in_place(partial: Path, path: Path, old: Path) -> None:
    """Rename `partial` to `path`; what was there becomes `old`, and comes back if that fails."""
    taken = path.exists()
    if taken:
        os.rename(path, old)
    try:
        os.rename(partial, path)
    except OSError:
        if taken:
            os.rename(old, path)
        raise


def _require_free(path: Path) -> None:
    """Refuse a name under which something lies; it may have come since the command began."""
    if path.is_symlink() or (path.exists() and (not path.is_dir() or any(path.iterdir()))):
        raise FileExistsError(errno.EEXIST, "exists", str(path))


@contextmanager
def _parents_made(path: Path) -> Iterator[None]:
    """Make the directories that lead to `path`; after an error remove those that were made and hold nothing."""
    missing = [parent for parent in path.parents if not parent.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for parent in missing:
            with suppress(OSError):
                parent.rmdir()
        raise


def _beside(path: Path, kind: str = "") -> Path:
    """Return the partial name of a path: its own name behind the prefix, a hash of it where that is too long."""
    name = f"{PARTIAL}{kind}{path.name}"
    if len(os.fsencode(name)) > _LONGEST_NAME:
        name = f"{PARTIAL}{kind}{hashlib.blake2b(os.fsencode(path.name), digest_size=16).hexdigest()}"
    return path.parent / name


def remove_directory(path: Path) -> None:
    """Remove a directory. A crash leaves it complete, or under a partial name.

    Raises:
        CannotWrite: the system refuses.
    """
    if path.exists():
        with writing(path, "give this user the right to write there", verb="removed"):
            doomed = _beside(path, "old-")
            _remove(doomed)
            os.rename(path, doomed)
            _remove(doomed)


def put_back(directory: Path) -> None:
    """Give what `new_directory` was replacing when it was killed, between its two renames, its name again."""
    start = f"{PARTIAL}{_REPLACED}"
    for entry in directory.glob(f"{start}*"):
        place = directory / entry.name.removeprefix(start)
        if not place.exists():
            os.rename(entry, place)


def remove_partial(directory: Path) -> None:
    """Remove the partial files and directories in `directory` that a crash left."""
    for entry in directory.glob(f"{PARTIAL}*"):
        _remove(entry)


def _remove(path: Path) -> None:
    """Remove a file, a directory with all that it holds, or a link, and then not what it points at."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sync_tree(directory: Path) -> None:
    """Flush a directory and everything in it to the disk."""
    for folder, _folders, files in os.walk(directory):
        for name in files:
            descriptor = os.open(os.path.join(folder, name), os.O_RDWR)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_directory(Path(folder))


def sync_directory(directory: Path) -> None:
    """Flush a directory's entries to the disk. Windows cannot open directories and does not need it."""
    if os.name == "nt":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
