"""Write files and directories so that a crash leaves them complete or absent: write beside, sync, rename."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIAL = ".partial-"
"""Prefix of what is being written. Anything with this prefix after a crash can be deleted."""


def write_text(path: Path, text: str) -> None:
    """Replace a file by `text`, in UTF-8; after a crash it has the old or the new text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.parent / f"{PARTIAL}{path.name}"
    with open(partial, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    sync_directory(path.parent)


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Yield an empty directory beside `path`, which is renamed to `path` when the block ends without an error.

    A directory that exists is replaced. That takes two renames; a crash between them leaves nothing at `path`, and the
    new directory under its partial name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, old = path.parent / f"{PARTIAL}{path.name}", path.parent / f"{PARTIAL}old-{path.name}"
    for stale in (partial, old):
        shutil.rmtree(stale, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        sync_tree(partial)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if path.exists():
        os.rename(path, old)
    os.rename(partial, path)
    sync_directory(path.parent)
    if old.is_symlink():
        old.unlink()  # and keep the directory that it points at
    else:
        shutil.rmtree(old, ignore_errors=True)


def remove_directory(path: Path) -> None:
    """Remove a directory. A crash leaves it complete, or under a partial name."""
    if path.exists():
        doomed = path.parent / f"{PARTIAL}old-{path.name}"
        shutil.rmtree(doomed, ignore_errors=True)
        os.rename(path, doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def remove_partial(directory: Path) -> None:
    """Remove the partial files and directories in `directory` that a crash left."""
    for entry in directory.glob(f"{PARTIAL}*"):
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


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
