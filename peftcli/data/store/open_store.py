"""Open the store of some sources: from the cache, or made now."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from peftcli.data.encode.encode_settings import EncodeSettings
from peftcli.data.read.splits import Purpose
from peftcli.data.store.build_store import Progress, build_store
from peftcli.data.store.cache import Found, cache_directory, cached_store
from peftcli.data.store.cache_key import key_of, tokenizer_fingerprint
from peftcli.data.store.store_job import StoreJob, source_jobs
from peftcli.data.store.token_store import Store
from peftcli.errors import Problem, UserError
from peftcli.progress import stage
from peftcli.recipe.schema import DataSource, DataSpec

ATTEMPTS = 3  # to prepare rows whose files are written meanwhile


class _Changed(Exception):
    """The files were written while their rows were prepared: what was made is of no one content."""


def open_store(
    spec: DataSpec,
    sources: list[DataSource],
    keys: list[str],
    settings: EncodeSettings,
    tokenizer: Any,
    *,
    on_error: Literal["fail", "skip"],
    purpose: Purpose = "any",
    progress: Progress | None = None,
) -> tuple[Store, bool]:
    """Return the store of some sources, and whether it was in the cache already.

    Args:
        spec: the recipe's `data` block.
        keys: the recipe's key of each source, for messages.
        settings: how examples become rows.
        on_error: what a broken row does.
        purpose: what the rows are read for, which decides about splits that the recipe does not name.
        progress: called with the number of rows encoded so far.

    Raises:
        UserError: anything wrong with the rows.
    """
    group_by = spec.group_by if spec.validation is None else None
    of_tokenizer, notes = tokenizer_fingerprint(tokenizer), list[str]()
    for _ in range(ATTEMPTS):
        job = StoreJob(source_jobs(spec, sources, keys, purpose), settings, on_error, group_by)
        try:
            found = _prepared(job, spec, tokenizer, of_tokenizer, progress)
        except _Changed:
            notes = [f"{job.input_names()[0]} changed while its rows were prepared: they were prepared again"]
            continue
        found.store.rename(job.input_names())
        of_files = [note for source in job.sources for note in source.files.notes]
        found.store.meta["notes"] = [*notes, *found.notes, *of_files, *found.store.meta["notes"]]
        return found.store, found.hit
    raise UserError(
        Problem(
            f"the file changed during each of the {ATTEMPTS} attempts to prepare its rows",
            file=job.input_names()[0],
            suggestion="wait until it is no longer being written, or copy it",
        )
    )


def _told(progress: Progress | None, advance: Callable[[int], None]) -> Progress:
    """Return what receives the number of rows so far, and tells both the caller and whoever watches."""
    before = 0

    def tell(rows: int) -> None:
        nonlocal before
        if progress is not None:
            progress(rows)
        advance(rows - before)
        before = rows

    return tell


def _prepared(job: StoreJob, spec: DataSpec, tokenizer: Any, of_tokenizer: str, progress: Progress | None) -> Found:
    """Return the store of a job from the cache, or made now.

    Raises:
        _Changed: the key and the rows are not of the same bytes.
    """
    state, facts = job.files_state(), job.facts()

    def build(directory: Path) -> None:
        with stage("preparing rows") as advance:
            told = _told(progress, advance)
            build_store(directory, job, tokenizer, processes=spec.num_proc, progress=told)
        # the state finds files that were put back meanwhile, the facts what a coarse clock of the file system hides
        if job.files_state() != state or job.facts() != facts:
            raise _Changed

    found = cached_store(cache_directory(spec.cache_dir), key_of({**facts, "tokenizer": of_tokenizer}), build)
    found.store.meta["contents"] = job.contents(facts)
    return found
