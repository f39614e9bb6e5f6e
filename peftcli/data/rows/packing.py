"""Pack several rows into one of `max_length` tokens: best-fit decreasing, positions restart at every document."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from peftcli.data.rows.row_set import Row, RowSet
from peftcli.ignored_label import IGNORED

Index = npt.NDArray[np.int64]


def best_fit(lengths: npt.NDArray[np.int32], capacity: int) -> tuple[Index, Index]:
    """Return (order, offsets): bin b holds the rows order[offsets[b] : offsets[b + 1]].

    Longest rows first, each into the fullest bin with room for it (best-fit decreasing: at most 11/9 of the fewest
    bins, plus one). Equal lengths keep their order, so the result depends on the lengths only.

    Args:
        lengths: (rows,) none above `capacity`.
        capacity: tokens of a bin.

    Raises:
        ValueError: a row is longer than a bin.
    """
    if len(lengths) and int(lengths.max()) > capacity:
        raise ValueError(f"a row of {int(lengths.max())} tokens does not fit into {capacity}")
    bins = np.empty(len(lengths), dtype=np.int64)  # bin of each row
    by_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    occupied = 0  # bit r is set when some bin has room for exactly r more tokens
    count = 0
    for row in np.argsort(-lengths.astype(np.int64), kind="stable").tolist():
        length = int(lengths[row])
        fitting = occupied >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            chosen = by_room[room].pop()
            if not by_room[room]:
                occupied &= ~(1 << room)
        else:
            room, chosen = capacity, count
            count += 1
        bins[row] = chosen
        by_room[room - length].append(chosen)
        occupied |= 1 << (room - length)
    order = np.argsort(bins, kind="stable")
    sizes = np.bincount(bins, minlength=count) if count else np.empty(0, dtype=np.int64)
    return order, np.concatenate((np.zeros(1, np.int64), np.cumsum(sizes)))


class PackedRows:
    """Rows put together into full ones.

    Args:
        rows: token rows with their labels; the first label of each must be -100, since nothing predicts it.
        max_length: tokens of a packed row at most.
    """

    def __init__(self, rows: RowSet, max_length: int) -> None:
        self.rows = rows
        own = rows.lengths
        self._order, self._offsets = best_fit(own, max_length)
        sums = np.concatenate((np.zeros(1, np.int64), np.cumsum(own[self._order], dtype=np.int64)))
        self._lengths = (sums[self._offsets[1:]] - sums[self._offsets[:-1]]).astype(np.int32)

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[Row]:
        return (self[number] for number in range(len(self)))

    @property
    def lengths(self) -> npt.NDArray[np.int32]:
        """Tokens of each packed row."""
        return self._lengths

    def members(self, index: int) -> list[int]:
        """Return the numbers of the rows that one packed row is made of, in order."""
        members: list[int] = self._order[self._offsets[index] : self._offsets[index + 1]].tolist()
        return members

    def __getitem__(self, index: int) -> Row:
        return join([self.rows[number] for number in self.members(index)])


def join(rows: Sequence[Row], continued: Sequence[int] = ()) -> Row:
    """Return rows of a language model behind each other as one, each a document whose positions start at 0.

    Args:
        continued: the first tokens of each that are left out, since the document before it begins with them
            (`layers.joined_documents`); its positions start behind them. None are without it.
    """
    firsts = continued or [0] * len(rows)
    labels = [np.array(row.labels, dtype=np.int32)[first:] for row, first in zip(rows, firsts, strict=True)]
    for one in labels:
        one[:1] = IGNORED  # a document's first token must not be predicted from the document before it
    ends = [(first, len(row.input_ids)) for row, first in zip(rows, firsts, strict=True)]
    return Row(
        np.concatenate([row.input_ids[first:] for row, first in zip(rows, firsts, strict=True)]),
        np.concatenate(labels),
        rows[0].source,
        rows[0].row,
        position_ids=np.concatenate([np.arange(first, end, dtype=np.int32) for first, end in ends]),
        documents=np.concatenate([np.full(end - first, i, dtype=np.int32) for i, (first, end) in enumerate(ends)]),
    )
