"""Where the documents of one row begin, and which of them have their first tokens in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Documents:
    """The documents of one row.

    Args:
        lengths: tokens of each in the row; their sum is the row's length.
        continued: how many tokens precede those of each document: the first ones of the last document before it that
            continues none. 0 for a document that is whole.
    """

    lengths: tuple[int, ...] = ()
    continued: tuple[int, ...] = ()

    @classmethod
    def at(cls, positions: Sequence[int]) -> Documents:
        """Return the documents of a row whose tokens have these positions: one begins wherever they do not go on."""
        starts = [0, *(number for number, (one, next) in enumerate(pairwise(positions), 1) if next != one + 1)]
        lengths = tuple(end - start for start, end in pairwise([*starts, len(positions)]))
        return cls(lengths, tuple(positions[start] for start in starts))

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def share(self) -> bool:
        """Whether any of them continues another."""
        return any(self.continued)
