"""Counts of a store's rows, and the labels that occur in some of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from peftcli.data.encode.encoded import DROPPED, KEPT, MASKED, TRUNCATED
from peftcli.data.store.data_report import Counts
from peftcli.data.store.labels import Kind, LabelSpec, order_names
from peftcli.data.store.token_store import Store
from peftcli.errors import Problem, UserError
from peftcli.recipe.schema import DataSpec

Index = npt.NDArray[np.int64]


def check_learning(store: Store, spec: DataSpec) -> None:
    """Raise when too many rows of a store have no token to train on, or no row is left."""
    require_learning(counts_of(store), store.meta["reasons"], store.meta["inputs"][0], spec)


def require_learning(counts: Counts, found: Mapping[str, int], source: str, spec: DataSpec, where: str = "") -> None:
    """Raise when too many rows have no token to train on, or no row is left.

    Args:
        found: why rows are not used, with their number.
        source: file to name.
        where: the rows are, for the message; by default all of the file's.
    """
    used = counts.rows - counts.skipped
    share = counts.fully_masked / used if used else 0.0
    if counts.kept and share <= spec.max_fully_masked:
        return
    reasons = "; ".join(f"{count:,} rows: {reason}" for reason, count in found.items())
    masked = f"{counts.fully_masked:,} of {used:,} rows{where} have no token to train on"
    what = masked if counts.fully_masked else "no row is left"
    raise UserError(
        Problem(
            f"{what} ({reasons or 'all were dropped'})",
            file=source,
            key="data",
            suggestion="see the rows with `peft inspect`; raise data.max_length, or change data.train_on; "
            f"data.max_fully_masked ({spec.max_fully_masked}) is the share that is allowed",
        )
    )


def counts_of(store: Store) -> Counts:
    status = store.raw("status")
    count = {name: int((status == name).sum()) for name in (KEPT, TRUNCATED, DROPPED, MASKED)}
    return counts_by_status(count, int(store.meta["skipped_count"]))


def counts_by_status(count: Mapping[int, int], skipped: int = 0) -> Counts:
    """Return the counts of rows of which so many have each status."""
    dropped, masked, truncated = (count.get(name, 0) for name in (DROPPED, MASKED, TRUNCATED))
    kept = count.get(KEPT, 0) + truncated
    return Counts(kept + dropped + masked + skipped, kept, truncated, dropped, masked, skipped)


def rows_of_raw(store: Store, raw: Index) -> Index:
    """Return the rows that were made from some raw rows."""
    wanted = np.zeros(len(store.raw("status")), dtype=np.bool_)
    wanted[raw] = True
    return np.flatnonzero(wanted[store.origin])


def label_spec(store: Store, rows: Index, kind: Kind | None) -> LabelSpec | None:
    """Return the labels of some rows; every column of 0/1 vectors is one, also where it is 0 in all rows."""
    if kind is None:
        return None
    if width := (store.meta.get("form") or {}).get("width", 0):
        return LabelSpec(kind, tuple(map(str, range(width))))
    return LabelSpec(kind, () if kind == "regression" else order_names(names_of(store, rows)))


def _label_numbers(store: Store, rows: Index) -> npt.NDArray[np.int64]:
    """Return the label numbers that occur in some rows."""
    if store.value is not None:
        return np.unique(store.value[rows].astype(np.int64))
    if store.labels is None:
        return np.empty(0, dtype=np.int64)
    owners = np.repeat(np.arange(len(store)), np.diff(store.label_offsets))
    found = np.unique(store.labels[np.isin(owners, rows)])
    return found[found >= 0].astype(np.int64)


def names_of(store: Store, rows: Index) -> set[str]:
    names = store.meta["names"]
    return {names[number] for number in _label_numbers(store, rows).tolist()}


def first_places(store: Store, rows: Index) -> dict[str, str]:
    """Return for each label of some rows the place of the first that has it, such as `train.csv:2`."""
    if store.value is not None:
        owners, labels = rows, store.value[rows].astype(np.int64)
    else:
        owners = np.repeat(np.arange(len(store)), np.diff(store.label_offsets))
        labels = np.empty(0, np.int64) if store.labels is None else np.asarray(store.labels, dtype=np.int64)
        chosen = np.isin(owners, rows) & (labels >= 0)
        owners, labels = owners[chosen], labels[chosen]
    numbers, first = np.unique(labels, return_index=True)
    places = [store.place(int(owners[place])) for place in first]
    return {
        store.meta["names"][number]: f"{source}:{row}"
        for number, (source, row) in zip(numbers.tolist(), places, strict=True)
    }


def rows_with_other_names(store: Store, rows: Index, known: set[str]) -> Index:
    """Return those of some rows that have a label outside `known`."""
    strange = np.array([name not in known for name in store.meta["names"]], dtype=np.bool_)
    if not strange.any() or not len(rows):
        return rows[:0]
    if store.value is not None:
        return rows[strange[store.value[rows].astype(np.int64)]]
    if store.labels is None:
        return rows[:0]
    labels = np.asarray(store.labels)
    owners = np.repeat(np.arange(len(store)), np.diff(store.label_offsets))
    guilty = np.unique(owners[(labels >= 0) & strange[np.maximum(labels, 0)]])
    return rows[np.isin(rows, guilty)]
