"""Where prepared rows are kept: directories named by a hash of all that decides their content."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from peftcli.data.store.token_store import META, Store
from peftcli.errors import UserError
from peftcli.file_lock import NoLocks, file_lock
from peftcli.locations import CACHE_VARIABLE, user_cache
from peftcli.write_errors import writing

OTHER_CACHE = f"name another cache directory: data.cache_dir in the recipe, or ${CACHE_VARIABLE}"
VERSION = 4  # of the store's layout and of everything that turns rows into tokens; a change makes old entries unused


def cache_directory(named: str | None) -> Path:
    """Return the directory of prepared rows: the recipe's, $PEFTCLI_CACHE, or the user's cache directory.

    Raises:
        UserError: none is named, and the user has no home directory.
    """
    if named:
        return Path(named).expanduser()
    if from_environment := os.environ.get(CACHE_VARIABLE):
        return Path(from_environment)
    cache = user_cache()
    if cache is None:
        remedy = f"name a directory: data.cache_dir, or the environment variable {CACHE_VARIABLE}"
        raise UserError("there is no place for prepared rows: this user has no home directory", suggestion=remedy)
    return cache / "data"


def key_of(facts: dict[str, Any]) -> str:
    """Return the name of the entry for everything that decides its content."""
    text = json.dumps({"version": VERSION, **facts}, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Return a hash of what a tokenizer does to text; its chat template is hashed apart, if it is used."""
    total = hashlib.blake2b(digest_size=16)
    total.update(type(tokenizer).__name__.encode())
    if tokenizer.is_fast:
        # serialised without truncation and padding: those are settings of the last call
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
        total.update(tokenizer.backend_tokenizer.to_str().encode())
    else:
        total.update(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode())
        total.update(json.dumps(tokenizer.encode("A test, 1 2  3!\n x")).encode())
    special = {name: str(token) for name, token in sorted(tokenizer.special_tokens_map.items())}
    total.update(json.dumps([special, tokenizer.truncation_side, tokenizer.model_input_names]).encode())
    return total.hexdigest()


def cached_store(root: Path, key: str, build: Callable[[Path], None]) -> tuple[Store, bool]:
    """Return the store of a key, and whether it was there already.

    Of several processes that want the same key at once one builds it and the others wait for it; an entry that
    is not finished has another name and is never used.

    Args:
        build: writes a store into an empty directory.

    Raises:
        UserError: the file system of `root` has no locks, or is full.
    """
    final = root / key
    if (final / META).exists():
        return Store(final), True
    try:
        root.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=root).close()
    except OSError:  # a read-only home directory: the rows live as long as the system's temporary files
        return cached_store(Path(tempfile.mkdtemp(prefix="peftcli-data-")), key, build)
    with writing(root, OTHER_CACHE), _lock(root / f"{key}.lock"):
        if (final / META).exists():
            return Store(final), True
        for left in root.glob(f".{key}-*"):  # of a run that was killed: whoever builds holds the lock
            shutil.rmtree(left, ignore_errors=True)
        building = Path(tempfile.mkdtemp(prefix=f".{key}-", dir=root))
        try:
            build(building)
            if final.exists():  # without its meta file: somebody removed a part of it
                shutil.rmtree(final)
            os.replace(building, final)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    return Store(final), False


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
