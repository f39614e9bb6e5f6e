"""Which rows make a batch: the order of each epoch, by default shuffled with rows of like length together."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from peftcli.data.rows.row_set import RowSet
from peftcli.data.rows.streaming import StreamedRows
from peftcli.recipe.schema import SamplingStrategy

POOL = 50  # batches whose rows are sorted by length together: little padding, and an order that is still random


def batches(
    rows: RowSet,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    sampling: SamplingStrategy = "group_by_length",
    world: int = 1,
    rank: int = 0,
) -> list[list[int]]:
    """Return the row numbers of each training batch of one process in one epoch.

    The order depends on seed and epoch only, so a run continues at any batch. Every row comes exactly once over all
    processes; every process has equally many batches, and none of them is empty.

    Args:
        batch_size: rows of one process in one batch.
        sampling: `group_by_length` shuffles and puts rows of like length together, `random` shuffles, `sequential`
            keeps the data's order in every epoch.
        world, rank: number of processes, and which one this is.

    Raises:
        ValueError: fewer rows than processes.
    """
    total = len(rows)
    if total < world:
        raise ValueError(f"{total} rows cannot be shared among {world} processes")
    random = np.random.Generator(np.random.PCG64([seed, epoch, 0xBA7C]))
    streamed = isinstance(rows, StreamedRows)  # shuffled as they are read, and read in order only
    as_they_are = streamed or sampling == "sequential"
    order = np.arange(total) if as_they_are else random.permutation(total)
    whole = _shares(order, batch_size * world, world)
    if sampling == "group_by_length" and not streamed:
        whole = _group(whole, rows.lengths, random)
    return [batch[rank::world].tolist() for batch in whole]


def _shares(order: npt.NDArray[np.int64], size: int, world: int) -> list[npt.NDArray[np.int64]]:
    """Cut an order into batches of `size`; the last has a row for every process at least."""
    cuts = list(range(size, len(order), size))
    if cuts and len(order) - cuts[-1] < world:
        cuts[-1] -= world - (len(order) - cuts[-1])
    return [part for part in np.split(order, cuts) if len(part)]


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
