"""Encoded rows on their way to the store: what an encoder returns for an example, and chunks of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int32]
KEPT, TRUNCATED, DROPPED, MASKED = 0, 1, 2, 3
"""What became of a row: whole, cut, left out for its length, or without anything to learn."""


@dataclass(slots=True)
class Encoded:
    """One row of tokens.

    Args:
        ids: (tokens,).
        mask: (tokens,) bool, which tokens are learnt; None where labels are something else.
        labels: token labels of another kind: target tokens, or numbers into the chunk's label names.
        types: (tokens,) segment numbers of a text pair, or None.
        value: regression value, or number into the chunk's label names.
        truncated: whether tokens were left out.
    """

    ids: Ints
    mask: npt.NDArray[np.bool_] | None = None
    labels: Ints | None = None
    types: npt.NDArray[np.uint8] | None = None
    value: float | None = None
    truncated: bool = False


@dataclass(slots=True)
class FlatRows:
    """The rows of a chunk as few arrays, on their way between processes: many small ones take seven times as long.

    Args:
        arrays: by the name of a row's field all rows' values behind each other, and the length of each; None where no
            row has any.
        values, truncated: of each row.
    """

    arrays: dict[str, tuple[npt.NDArray[Any], list[int]] | None]
    values: list[float | None]
    truncated: list[bool]

    @classmethod
    def of(cls, rows: Sequence[Encoded]) -> FlatRows:
        """Return rows of one kind: each field is there in all of them, or in none."""
        found: dict[str, tuple[npt.NDArray[Any], list[int]] | None] = {}
        for name in ("ids", "mask", "labels", "types"):
            parts = [part for row in rows if (part := getattr(row, name)) is not None]
            assert len(parts) in (0, len(rows))  # one encoder made them
            found[name] = (np.concatenate(parts), [len(part) for part in parts]) if parts else None
        return cls(found, [row.value for row in rows], [row.truncated for row in rows])

    def rows(self) -> list[Encoded]:
        """Return the rows; their arrays are parts of the whole ones."""
        columns = [_parts(self.arrays[name], len(self.values)) for name in ("ids", "mask", "labels", "types")]
        return [Encoded(*row) for row in zip(*columns, self.values, self.truncated, strict=True)]


def _parts(flat: tuple[npt.NDArray[Any], list[int]] | None, count: int) -> list[Any]:
    if flat is None:
        return [None] * count
    whole, lengths = flat
    ends = list(accumulate(lengths))
    return [whole[end - length : end] for end, length in zip(ends, lengths, strict=True)]


@dataclass(slots=True)
class Outcome:
    """What an encoder made of one example: rows, or the reason why there are none.

    Args:
        unused: what of the example is not in the rows, or not learnt although it could be.
        tokens: how long the example is before anything is cut; estimated for the longest texts.
        value: number into the chunk's label names of an example with one class, also where no row is left.
        empty_answer: whether an answer without text is learnt.
    """

    rows: list[Encoded] = field(default_factory=list)
    status: int = KEPT
    reason: str = ""
    unused: tuple[str, ...] = ()
    tokens: int = 0
    value: float | None = None
    empty_answer: bool = False


class Names:
    """Numbers for names in order of first sight."""

    def __init__(self, names: Sequence[str] = ()) -> None:
        self.numbers: dict[str, int] = {name: number for number, name in enumerate(names)}

    def number(self, name: str) -> int:
        """Return the number of a name, giving it the next one when it is new."""
        return self.numbers.setdefault(name, len(self.numbers))

    def all(self) -> list[str]:
        """Return the names by number."""
        return list(self.numbers)
