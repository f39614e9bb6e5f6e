"""Log-probabilities of stored rows under a model that does not change, kept beside the rows.

A file in the store's directory, under a hash of everything that decides its values: it goes where the rows go, and a
damaged one is computed again.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from peftcli.data.rows.referenced_rows import Reference
from peftcli.data.rows.row_set import RowSet, StoredRows
from peftcli.data.rows.single_answers import SingleAnswers


def reference_file(rows: RowSet, facts: Mapping[str, str]) -> Path | None:
    """Return where the values of some rows are kept; None for rows that are in no store.

    Args:
        facts: what decides the values besides the rows: the model and how it computes.
    """
    if isinstance(rows, SingleAnswers):
        facts, rows = {**facts, "answers": f"single, {rows.others.longest}"}, rows.rows
    if not isinstance(rows, StoredRows):
        return None
    chosen = hashlib.blake2b(np.ascontiguousarray(rows.index).tobytes(), digest_size=16).hexdigest()
    text = json.dumps({**facts, "rows": chosen, "version": 1}, sort_keys=True)
    return rows.store.directory / f"reference-{hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}.npz"


def read_reference(file: Path | None, rows: int) -> Reference | None:
    """Return the values in a file; None where there is none, or not a whole one."""
    if file is None or not file.is_file():
        return None
    try:
        with np.load(file, allow_pickle=False) as found:
            values: Reference = found["values"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return values if values.shape == (rows, 2) and values.dtype == np.float32 else None


def write_reference(file: Path | None, values: Reference) -> None:
    """Keep values; a cache that cannot be written does without."""
    if file is None:
        return
    with suppress(OSError):
        handle, name = tempfile.mkstemp(prefix=f".{file.name}-", dir=file.parent)
        try:
            with os.fdopen(handle, "wb") as opened:
                np.savez(opened, values=values)
            os.replace(name, file)
        except OSError:
            Path(name).unlink(missing_ok=True)
