"""Rows that are in the training set and in a validation set: a score on them does not measure generalisation."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from peftcli.data.prepared_data import PreparedData
from peftcli.data.rows.packing import PackedRows
from peftcli.data.rows.row_set import RowSet, StoredRows
from peftcli.data.rows.single_answers import SingleAnswers
from peftcli.recipe.schema import DataSpec


def stored_rows(rows: RowSet) -> StoredRows | None:
    """Return the stored rows of a set, unpacked; None for a stream, whose rows are not known in advance."""
    inner = rows.rows if isinstance(rows, PackedRows | SingleAnswers) else rows
    return inner if isinstance(inner, StoredRows) else None


def shared_rows(train: RowSet, validation: Mapping[str, RowSet]) -> dict[str, npt.NDArray[np.int64]]:
    """Return by validation set the positions of its rows whose tokens are those of a training row.

    It compares the hashes that the store keeps; sorting costs a million rows a few hundredths of a second, where
    numpy's `unique` and `isin` take twenty times as long.
    """
    mine = stored_rows(train)
    if mine is None or not len(mine):
        return {}
    found = {name: stored_rows(rows) for name, rows in validation.items()}
    known = np.sort(mine.store.digest[mine.index])
    return {name: _members(rows.store.digest[rows.index], known) for name, rows in found.items() if rows is not None}


def _members(values: npt.NDArray[np.uint64], known: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Return the positions of the values that occur in `known`, which is sorted and not empty."""
    places = np.minimum(np.searchsorted(known, values), len(known) - 1)
    return np.flatnonzero(known[places] == values)


def _remedy(data: PreparedData, spec: DataSpec) -> str:
    """Return how the rows that are in both sets are kept apart."""
    if spec.validation is not None:
        return "remove them from one of the two"
    if spec.group_by is not None:
        return f"they differ in {spec.group_by!r}, or only behind the tokens that were kept (data.max_length)"
    column = "text" if data.report.format == "folders" else "COLUMN"  # what a file of a class folder is read as
    return f"keep them on one side of the split with data.group_by: {column}"


def overlap_notes(data: PreparedData, spec: DataSpec) -> list[str]:
    """Return a note on validation rows that are also training rows; none where there are no such rows."""
    shared = sum(len(rows) for rows in shared_rows(data.train, data.validation).values())
    if not shared:
        return []
    total = sum(len(rows) for rows in data.validation.values())
    verb = "is a training row too" if shared == 1 else "are training rows too"
    return [
        f"{shared:,} of {total:,} validation rows {verb}, token for token, so the score is too optimistic: "
        f"`peft inspect RECIPE` names some; {_remedy(data, spec)}"
    ]
