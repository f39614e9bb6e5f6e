"""Open the store of some sources: from the cache, or made now."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from peftcli.data.encode.encode_settings import EncodeSettings
from peftcli.data.read.splits import Purpose
from peftcli.data.store.build_store import Progress, build_store
from peftcli.data.store.cache import cache_directory, cached_store, key_of, tokenizer_fingerprint
from peftcli.data.store.store_job import StoreJob, source_jobs
from peftcli.data.store.token_store import Store
from peftcli.recipe.schema import DataSource, DataSpec


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
    job = StoreJob(source_jobs(spec, sources, keys, purpose), settings, on_error, group_by)
    key = key_of({**job.facts(), "tokenizer": tokenizer_fingerprint(tokenizer)})

    def build(directory: Path) -> None:
        build_store(directory, job, tokenizer, processes=spec.num_proc, progress=progress)

    store, hit = cached_store(cache_directory(spec.cache_dir), key, build)
    store.rename(job.input_names())
    store.meta["notes"] = [*(note for source in job.sources for note in source.files.notes), *store.meta["notes"]]
    return store, hit
