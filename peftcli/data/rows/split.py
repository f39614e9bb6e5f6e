"""Split rows into training and validation: reproducible by seed, stratified by class, or grouped by a column."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from peftcli.errors import Problem, UserError

Index = npt.NDArray[np.int64]


def validation_count(size: float, rows: int, source: str | None = None) -> int:
    """Return how many of `rows` rows are split off.

    Args:
        size: a share below 1, or a whole number of rows.
        source: where the rows come from, for the message.

    Raises:
        UserError: a fraction above 1, or nothing is left to train on.
    """
    if size == 0:
        return 0
    if size > 1 and size != math.floor(size):
        raise UserError(
            Problem(f"{size} is neither a share below 1 nor a whole number of rows", key="data.val_set_size")
        )
    count = int(size) if size >= 1 else max(1, round(size * rows))
    if count >= rows:
        raise UserError(
            Problem(
                f"{count} validation rows of {rows}{f' in {source}' if source else ''} leave none to train on",
                key="data.val_set_size",
                suggestion="make it smaller, 0 for no validation, or give more rows",
            )
        )
    return count


def split_rows(
    rows: Index,
    size: float,
    seed: int,
    *,
    classes: npt.NDArray[np.int32] | None = None,
    groups: npt.NDArray[np.uint64] | None = None,
    source: str | None = None,
) -> tuple[Index, Index]:
    """Return (training, validation) of some row numbers, each in the order given.

    Args:
        rows: numbers of the rows.
        size: a share below 1, or a whole number of rows.
        classes: class of each row; shares of the classes stay the same on both sides.
        groups: group of each row; a group stays on one side.
        source: where the rows come from, for messages.
    """
    count = validation_count(size, len(rows), source)
    if not count:
        return rows, rows[:0]
    # a generator of its own kind: the split of a seed stays the same whatever else draws random numbers
    random = np.random.Generator(np.random.PCG64([seed, 0x5711]))
    if groups is not None:
        chosen = _by_groups(groups, count, random)
    elif classes is not None:
        chosen = _by_classes(classes, count, random)
    else:
        chosen = np.zeros(len(rows), dtype=np.bool_)
        chosen[random.permutation(len(rows))[:count]] = True
    return rows[~chosen], rows[chosen]


def _by_classes(classes: npt.NDArray[np.int32], count: int, random: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Choose rows so that every class gives its share, rounded by largest remainder; one row of each stays behind."""
    names, sizes = np.unique(classes, return_counts=True)
    exact = sizes * (count / len(classes))
    take = np.floor(exact).astype(int)  # below the size, since some row always stays for training
    for place in np.argsort(-(exact - np.floor(exact)), kind="stable"):
        if take.sum() < count and take[place] < sizes[place] - 1:
            take[place] += 1
    chosen = np.zeros(len(classes), dtype=np.bool_)
    for name, wanted in zip(names, take, strict=True):
        members = np.flatnonzero(classes == name)
        chosen[random.permutation(members)[:wanted]] = True
    return chosen


def _by_groups(groups: npt.NDArray[np.uint64], count: int, random: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Choose whole groups, in random order, while that brings the number of rows nearer to the one wanted."""
    names, inverse, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    if len(names) < 2:
        raise UserError(
            Problem(
                "all rows are in one group, so none can be split off",
                key="data.group_by",
                suggestion="choose another column, or val_set_size: 0",
            )
        )
    taken: list[int] = []
    total = 0
    for place in random.permutation(len(names)):
        if len(taken) < len(names) - 1 and abs(total + sizes[place] - count) < abs(total - count):
            taken.append(int(place))
            total += int(sizes[place])
    if not taken:
        taken = [int(np.argmin(sizes))]
    return np.isin(inverse, taken)
