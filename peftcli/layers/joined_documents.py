"""Where the documents of one row begin, and which of them have their first tokens in common."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy.typing as npt


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
    def at(cls, positions: npt.ArrayLike) -> Documents:
        """Return the documents of a row whose tokens have these positions: one begins wherever they do not go on."""
        import numpy as np  # here: what reads the tasks' records needs no numpy

        at = np.asarray(positions)
        starts = [0, *(np.flatnonzero(np.diff(at) != 1) + 1).tolist()]
        lengths = tuple(end - start for start, end in pairwise([*starts, len(at)]))
        return cls(lengths, tuple(at[starts].tolist()))

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def share(self) -> bool:
        """Whether any of them continues another."""
        return any(self.continued)
