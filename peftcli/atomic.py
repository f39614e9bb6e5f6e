"""Files and directories that appear whole or not at all: written beside, synced, renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIAL = ".partial-"
"""Prefix of what is being written; whatever carries it after a crash is rubbish."""


def write_text(path: Path, text: str) -> None:
    """Replace a file by `text` (UTF-8), whole or not at all."""
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
    """Yield an empty directory beside `path` that becomes `path` when the block ends without an error.

    A directory that is there already is replaced; between the two renames neither is at `path`, and a crash there
    leaves the new one under its partial name.
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
        old.unlink()  # what it points at is not ours
    else:
        shutil.rmtree(old, ignore_errors=True)


def remove_directory(path: Path) -> None:
    """Remove a directory so that a crash leaves it whole or under a partial name."""
    if path.exists():
        doomed = path.parent / f"{PARTIAL}old-{path.name}"
        shutil.rmtree(doomed, ignore_errors=True)
        os.rename(path, doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def remove_partial(directory: Path) -> None:
    """Remove what a crash left half written directly below `directory`."""
    for entry in directory.glob(f"{PARTIAL}*"):
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def sync_tree(directory: Path) -> None:
    """Flush every file below `directory`, and the directories, to the disk."""
    for folder, _folders, files in os.walk(directory):
        for name in files:
            descriptor = os.open(os.path.join(folder, name), os.O_RDWR)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_directory(Path(folder))


def sync_directory(directory: Path) -> None:
    """Flush a directory's entries; Windows cannot open directories and needs none of it."""
    if os.name == "nt":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
