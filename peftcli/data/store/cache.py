"""Where prepared rows are kept: directories named by a hash of all that decides their content."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from peftcli.data.store.cache_limit import LIMIT_VARIABLE, mark_used, remove_oldest, size_limit
from peftcli.data.store.file_digests import DamagedStore, check_files
from peftcli.data.store.temporary_cache import temporary_cache
from peftcli.data.store.token_store import Store
from peftcli.errors import Problem, UserError
from peftcli.file_lock import NoLocks, file_lock
from peftcli.locations import CACHE_VARIABLE, user_cache
from peftcli.write_errors import writing

OTHER_CACHE = f"name another cache directory: data.cache_dir in the recipe, or ${CACHE_VARIABLE}"
KEEPS = f"data.cache_dir or the environment variable {CACHE_VARIABLE} names a directory that keeps them"


@dataclass(frozen=True)
class Found:
    """A store, from the cache or made now.

    Args:
        store: its files are what was written.
        hit: whether it was there already.
        notes: what a user should know of the cache.
    """

    store: Store
    hit: bool
    notes: list[str] = field(default_factory=list)


def cache_directory(named: str | None) -> Path | None:
    """Return the directory of prepared rows: the recipe's, $PEFTCLI_CACHE, or the user's cache directory.

    None where none is named, and the user has no home directory.

    Raises:
        UserError: the recipe names one in a home directory that does not exist.
    """
    if named:
        try:
            return Path(named).expanduser()
        except RuntimeError as error:
            remedy = "write the path out, or leave it away"
            raise UserError(Problem(f"{named}: {error}", key="data.cache_dir", suggestion=remedy)) from error
    if from_environment := os.environ.get(CACHE_VARIABLE):
        return Path(from_environment)
    cache = user_cache()
    return None if cache is None else cache / "data"


def cached_store(root: Path | None, key: str, build: Callable[[Path], None]) -> Found:
    """Return the store of a key.

    Of several processes that want the same key at once one builds it and the others wait for it; an entry that
    is not finished has another name and is never used. One that is damaged is made again.

    Args:
        root: directory of the cache; None has the rows live as long as this process.
        build: writes a store into an empty directory.

    Raises:
        UserError: the file system of `root` has no locks, or is full.
    """
    limit = size_limit()
    if root is None:
        return _temporary(key, build, "this user has no home directory")
    final, notes = root / key, list[str]()
    store = _whole(final, notes)
    if store is not None:
        return Found(store, True)
    try:
        root.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=root).close()
    except (OSError, ValueError) as error:  # ValueError: the name has a NUL
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return _temporary(key, build, f"the cache {root} cannot be written ({reason})", notes)
    with writing(root, OTHER_CACHE), _lock(root / f"{key}.lock"):
        store = _whole(final, [])
        if store is not None:  # another process made it meanwhile
            return Found(store, True)
        try:
            _remove(root.glob(f".{key}-*"))  # of a run that was killed: whoever builds holds the lock
            _remove([final] if final.exists() else [])
        except OSError as error:
            return _temporary(key, build, f"{error.filename} cannot be removed ({error.strerror or error})", notes)
        made = _built(root, key, build)
    if removed := remove_oldest(root, limit):
        notes.append(
            f"the {len(removed)} least recently used entries in {root} were removed: {LIMIT_VARIABLE} is "
            f"{limit / 1e9:g} GB"
        )
    return Found(made, False, notes)


def _whole(entry: Path, notes: list[str]) -> Store | None:
    """Return the store of an entry, marked as in use; None where there is none, or a damaged one, which is noted."""
    if not entry.exists():
        return None
    in_use = mark_used(entry)
    try:
        check_files(entry)
        return _held(entry, in_use)
    except DamagedStore as damage:
        notes.append(f"the prepared rows in {entry} were damaged and are made again: {damage}")
        if in_use is not None:
            in_use.close()
        return None


def _built(root: Path, key: str, build: Callable[[Path], None]) -> Store:
    """Return the store that `build` makes, under its name; nothing is left of one that fails."""
    building = Path(tempfile.mkdtemp(prefix=f".{key}-", dir=root))
    try:
        build(building)
        in_use = mark_used(building)
        os.replace(building, root / key)
        return _held(root / key, in_use)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _held(entry: Path, in_use: IO[bytes] | None) -> Store:
    """Return the store of an entry that nobody removes while the store is there."""
    store = Store(entry)
    if in_use is not None:
        weakref.finalize(store, in_use.close)
    return store


def _temporary(key: str, build: Callable[[Path], None], reason: str, notes: list[str] | None = None) -> Found:
    """Return a store that lives as long as this process, with a note that says why."""
    found = [*(notes or []), f"{reason}: prepared rows are kept until this command ends; {KEEPS}"]
    root = temporary_cache()
    store = _whole(root / key, found)
    with writing(root, OTHER_CACHE):
        return Found(store or _built(root, key, build), store is not None, found)


def _remove(directories: Iterable[Path]) -> None:
    for directory in directories:
        shutil.rmtree(directory)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            stack.enter_context(file_lock(path, wait=True))
        except NoLocks:
            raise UserError(
                f"the cache directory {path.parent} is on a file system without locks",
                suggestion=OTHER_CACHE,
            ) from None
        yield
