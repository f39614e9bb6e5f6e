"""What happens to rows longer than `data.max_length`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import numpy.typing as npt

Overflow = Literal["truncate", "drop", "split", "error"]
Bools = npt.NDArray[np.bool_]
CONTEXT = 4  # when not even the learnt tokens fit, a quarter of the row stays for what stands before them


def best_window(mask: Bools, length: int) -> int:
    """Return the start of the window of `length` tokens that keeps the most learnt tokens.

    Of equally good windows the earliest wins: a prompt loses its beginning, a document its end. When the learnt
    tokens alone do not fit, a window with three quarters learnt counts as full, so that context stays before them.
    """
    total = int(mask.sum())
    enough = total if total < length else length - length // CONTEXT
    sums = np.concatenate(([0], np.cumsum(mask)))
    inside = np.minimum(sums[length:] - sums[:-length], enough)
    return int(np.argmax(inside))


def pieces(tokens: int, length: int) -> Iterator[slice]:
    """Yield consecutive slices of at most `length` tokens."""
    for start in range(0, tokens, length):
        yield slice(start, min(start + length, tokens))
