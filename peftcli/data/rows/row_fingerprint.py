"""A hash of training rows, by which a resumed run notices that they changed."""

from __future__ import annotations

import hashlib

import numpy as np

from peftcli.data.rows.row_set import RowSet, StoredRows
from peftcli.data.rows.single_answers import SingleAnswers
from peftcli.data.rows.streaming import StreamedRows

SAMPLE = 1000
"""Rows that are hashed whole; of the others, the length is."""


def row_fingerprint(rows: RowSet) -> str | None:
    """Return a hash of how many rows there are, of all lengths and of the tokens and labels of up to `SAMPLE` rows.

    None for a stream, whose rows are not known beforehand.
    """
    if isinstance(rows, StreamedRows):
        return None
    found = hashlib.sha256(np.ascontiguousarray(rows.lengths).tobytes())
    if isinstance(rows, SingleAnswers):
        found.update(rows.good.tobytes())
    for index in np.linspace(0, len(rows) - 1, min(len(rows), SAMPLE)).astype(int):
        row = rows[int(index)]
        found.update(np.asarray(row.input_ids).tobytes())
        found.update(np.asarray(row.labels if row.labels is not None else ()).tobytes())
    stored = rows.rows if isinstance(rows, SingleAnswers) else rows
    if isinstance(stored, StoredRows):
        stored.store.unmap()  # the system maps 64 KB around each row: of a million rows everything
    return f"sha256:{found.hexdigest()[:32]}"
