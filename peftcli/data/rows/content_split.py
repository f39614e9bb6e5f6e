"""Split rows by what they hold: the same rows are held out whatever is cut, dropped or added by another model."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from peftcli.data.rows.split import Index, class_shares, validation_count, whole_groups


def split_by_content(
    identities: npt.NDArray[np.uint64],
    size: float,
    seed: int,
    *,
    classes: npt.NDArray[np.int32] | None = None,
    groups: npt.NDArray[np.uint64] | None = None,
) -> tuple[Index, Index]:
    """Return (training, validation) of rows by number, each in order: rule 2 of `data.split_rule`.

    Each row has a rank that its content and the seed decide alone; the first ones are held out. Of equal rows each has
    a rank of its own: `data.group_by` keeps them on one side.

    Args:
        identities: hash of each row's values in the file.
        size: a share below 1, or a whole number of rows.
        classes: class of each row; shares of the classes stay the same on both sides.
        groups: hash of each row's group; a group stays on one side.
    """
    rows = np.arange(len(identities), dtype=np.int64)
    count = validation_count(size, len(rows))
    if not count:
        return rows, rows[:0]
    identities = _with_copies(identities)
    chosen = np.zeros(len(rows), dtype=np.bool_)
    if groups is not None:
        names, inverse, sizes = np.unique(groups, return_inverse=True, return_counts=True)
        chosen = np.isin(inverse, whole_groups(sizes, count, _order(names, seed)))
    elif classes is not None:
        names, sizes = np.unique(classes, return_counts=True)
        for name, wanted in zip(names, class_shares(sizes, count), strict=True):
            members = np.flatnonzero(classes == name)
            chosen[members[_order(identities[members], seed)[:wanted]]] = True
    else:
        chosen[_order(identities, seed)[:count]] = True
    return rows[~chosen], rows[chosen]


def _with_copies(identities: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return hashes that differ for equal rows: the number of the copy is part of them."""
    order = np.argsort(identities, kind="stable")
    ordered = identities[order]
    first = np.searchsorted(ordered, ordered)
    copy = np.empty(len(identities), dtype=np.uint64)
    copy[order] = (np.arange(len(identities)) - first).astype(np.uint64)
    with np.errstate(over="ignore"):
        return identities + copy * np.uint64(0xD1B54A32D192ED03)


def _order(hashes: npt.NDArray[np.uint64], seed: int) -> Index:
    """Return the numbers of some hashes in an order that the seed decides (splitmix64, Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        mixed = hashes + np.uint64(seed + 1) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.argsort(mixed ^ (mixed >> np.uint64(31)), kind="stable")
