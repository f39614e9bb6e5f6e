"""Which rows make a batch: the order of each epoch, by default shuffled with rows of like length together."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from peftcli.data.rows.row_set import RowSet
from peftcli.data.rows.streaming import StreamedRows
from peftcli.recipe.schema import SamplingStrategy

POOL = 50  # batches whose rows are sorted by length together: little padding, and an order that is still random


def epoch_batches(
    rows: RowSet, batch_size: int, *, seed: int, epoch: int, sampling: SamplingStrategy = "group_by_length"
) -> list[list[int]]:
    """Return the row numbers of each batch of one epoch: every row once, the last batch perhaps short.

    The order depends on seed and epoch only, so a run continues at any batch.

    Args:
        sampling: `group_by_length` shuffles and puts rows of like length together, `random` shuffles, `sequential`
            keeps the data's order in every epoch.
    """
    total = len(rows)
    random = np.random.Generator(np.random.PCG64([seed, epoch, 0xBA7C]))
    streamed = isinstance(rows, StreamedRows)  # shuffled as they are read, and read in order only
    as_they_are = streamed or sampling == "sequential"
    order = np.arange(total) if as_they_are else random.permutation(total)
    whole = np.split(order, range(batch_size, total, batch_size))
    if sampling == "group_by_length" and not streamed:
        whole = _group(whole, rows.lengths, random)
    return [batch.tolist() for batch in whole]


def _group(
    whole: list[npt.NDArray[np.int64]], lengths: npt.NDArray[np.int32], random: np.random.Generator
) -> list[npt.NDArray[np.int64]]:
    """Sort the rows of every pool of batches by length, keep the batches' sizes, and shuffle the batches."""
    out: list[npt.NDArray[np.int64]] = []
    for start in range(0, len(whole), POOL):
        pool = whole[start : start + POOL]
        rows = np.concatenate(pool)
        rows = rows[np.argsort(lengths[rows], kind="stable")]
        cuts = np.cumsum([len(batch) for batch in pool])[:-1]
        out += np.split(rows, cuts)
    return [out[place] for place in random.permutation(len(out))]
