"""Preferences as single answers, each good or bad: rows of KTO, and the mismatched pairs of its KL estimate.

A row's mismatched sequence is its prompt with the answer to another prompt. Which one is decided once for the whole
set: with the prompt before it, in the order of the rows. So the estimate of a step depends on its rows only, however
they are batched, and what the reference makes of these sequences can be computed before the first step, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from peftcli.data.rows.row_set import Row, StoredRows
from peftcli.ignored_label import IGNORED

Ints = npt.NDArray[np.int64]


class SingleAnswers:
    """Each answer of some stored preferences as a row of its own: both of a pair, chosen before rejected.

    Args:
        rows: preferences, with two sequences or one.
        max_length: tokens of a mismatched sequence at most; longer answers are cut at their end.

    Attributes:
        good: (answers,) whether each is a good one.
        prompts: (answers,) tokens that stand before each.
        others: the mismatched sequence of each.
    """

    def __init__(self, rows: StoredRows, max_length: int) -> None:
        self.rows = rows
        found = _answers(rows)
        self._row, self._start, self._end = found[:, 0], found[:, 1], found[:, 2]
        self.prompts: Ints = found[:, 3]
        self.good: npt.NDArray[np.bool_] = found[:, 4] == 0
        self.others = Mismatched(self, _partners(found[:, 5]), max_length)

    def __len__(self) -> int:
        return len(self._row)

    def __iter__(self) -> Iterator[Row]:
        return (self[number] for number in range(len(self)))

    @property
    def lengths(self) -> npt.NDArray[np.int32]:
        """Tokens of each answer with its prompt."""
        return np.asarray(self._end - self._start, dtype=np.int32)

    def __getitem__(self, index: int) -> Row:
        row, start, end = self.rows[int(self._row[index])], int(self._start[index]), int(self._end[index])
        labels, types = row.labels, row.token_type_ids
        assert isinstance(labels, np.ndarray) and types is not None  # of preferences
        return Row(row.input_ids[start:end], labels[start:end], row.source, row.row, types[start:end])


class Mismatched:
    """Each row's prompt with the answer of its partner.

    Args:
        partners: (answers,) the number of the answer that stands behind each prompt.
    """

    def __init__(self, answers: SingleAnswers, partners: Ints, max_length: int) -> None:
        self._answers, self.partners, self.longest = answers, partners, max_length

    def __len__(self) -> int:
        return len(self._answers)

    def __iter__(self) -> Iterator[Row]:
        return (self[number] for number in range(len(self)))

    @property
    def lengths(self) -> npt.NDArray[np.int32]:
        """Tokens of each sequence."""
        own = self._answers.lengths - self._answers.prompts
        return np.asarray(np.minimum(self._answers.prompts + own[self.partners], self.longest), dtype=np.int32)

    def __getitem__(self, index: int) -> Row:
        asked, answered = self._answers[index], self._answers[int(self.partners[index])]
        prompt, start = int(self._answers.prompts[index]), int(self._answers.prompts[self.partners[index]])
        assert isinstance(answered.labels, np.ndarray)  # of preferences
        ids = np.concatenate((asked.input_ids[:prompt], answered.input_ids[start:]))[: self.longest]
        unlearnt = np.full(prompt, IGNORED, dtype=np.int32)
        labels = np.concatenate((unlearnt, answered.labels[start:]))[: self.longest].astype(np.int32)
        return Row(ids, labels, asked.source, asked.row)


def _answers(rows: StoredRows) -> Ints:
    """Return of each answer: row, first and last place in it, tokens of the prompt, side (0 good), run of its prompt.

    Neighbouring rows with the same prompt are one run.
    """
    store = rows.store
    assert store.types is not None and store.mask is not None  # of preferences
    types, mask, ids = np.asarray(store.types), np.asarray(store.mask), np.asarray(store.ids)
    offsets = np.asarray(store.offsets)
    found: list[tuple[int, ...]] = []
    run, before = -1, b""
    for number, place in enumerate(rows.index.tolist()):
        start, end = int(offsets[place]), int(offsets[place + 1])
        own = types[start:end]
        cuts = [0, *(np.flatnonzero(np.diff(own)) + 1).tolist(), end - start]
        for first, last in pairwise(cuts):
            prompt = int(np.argmax(mask[start + first : start + last]))
            asked = ids[start + first : start + first + prompt].tobytes()
            run += asked != before
            before = asked
            found.append((number, first, last, prompt, int(own[first]), run))
    return np.array(found, dtype=np.int64).reshape(-1, 6)


def _partners(runs: Ints) -> Ints:
    """Return for each answer that of the run of rows before, the last one's for the first: at the same place in it.

    Where all rows have one prompt, it is the answer before.
    """
    count = len(runs)
    if not count or runs[0] == runs[-1]:
        return np.roll(np.arange(count), 1)
    starts = np.flatnonzero(np.diff(runs, prepend=-1))
    sizes = np.diff(starts, append=count)
    before = np.roll(np.arange(len(starts)), 1)[runs]
    places = np.arange(count) - starts[runs]
    return np.asarray(starts[before] + places % sizes[before])
