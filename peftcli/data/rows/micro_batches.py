"""How rows are cut into batches that a device computes at once, by their number and their tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from peftcli.data.rows.packing import best_fit

Lengths = npt.NDArray[np.int32] | Mapping[int, int]


def micro_batches(
    rows: Sequence[int], lengths: Lengths, *, batch_size: int, max_tokens: int | None, joined: bool = False
) -> list[list[int]]:
    """Return the rows of a step as micro-batches.

    Padded ones hold rows of similar length, longest first; joined ones as many rows as fit, of any length.

    Args:
        rows: row numbers, longest first.
        lengths: tokens of each row, by its number.
        batch_size: rows of a padded micro-batch at most.
        max_tokens: bound on a micro-batch's tokens, padding included; a single longer row stands alone.
        joined: whether a micro-batch's rows are put behind each other, without padding.
    """
    if joined and rows and max_tokens is not None:
        own = np.array([lengths[row] for row in rows])
        order, offsets = best_fit(own, max(max_tokens, int(own.max())))
        return [[rows[i] for i in order[start:end]] for start, end in pairwise(offsets)]
    return split_by_tokens(rows, lengths, batch_size, max_tokens)


def split_by_tokens(
    ordered: Sequence[int], lengths: Lengths, batch_size: int, max_tokens: int | None
) -> list[list[int]]:
    """Cut rows, longest first, into batches of at most `batch_size` rows and `max_tokens` padded tokens."""
    batches: list[list[int]] = []
    for row in ordered:
        current = batches[-1] if batches else []
        longest = int(lengths[current[0]]) if current else 0
        full = len(current) >= batch_size or (max_tokens is not None and (len(current) + 1) * longest > max_tokens)
        if not current or full:
            batches.append([row])
        else:
            current.append(row)
    return batches


def longest_first(rows: Sequence[int], lengths: Lengths) -> list[int]:
    """Return row numbers, longest first: little padding, and a batch too large for memory fails at once."""
    return sorted(rows, key=lambda row: (-int(lengths[row]), row))
