"""Rows of preference tuning with the log-probabilities of their answers under the model before the first step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from peftcli.data.rows.row_set import Row, RowSet
from peftcli.data.rows.single_answers import SingleAnswers

Reference = npt.NDArray[np.float32]
"""(rows, 2): of the chosen answer and of the rejected one; of single answers that of the answer and of its mismatched
sequence."""


class ReferencedRows:
    """Rows, each with its line of `reference`."""

    def __init__(self, rows: RowSet, reference: Reference) -> None:
        if len(rows) != len(reference):
            raise ValueError(f"{len(reference)} log-probabilities for {len(rows)} rows")
        self.rows, self.reference = rows, reference

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return (self[number] for number in range(len(self)))

    @property
    def others(self) -> RowSet | None:
        """The mismatched sequences of single answers, with theirs; None of pairs."""
        others = others_of(self.rows)
        return None if others is None else ReferencedRows(others, self.reference[:, 1:])

    @property
    def lengths(self) -> npt.NDArray[np.int32]:
        """Tokens of each row."""
        return self.rows.lengths

    def __getitem__(self, index: int) -> Row:
        known = self.reference[index]
        return replace(self.rows[index], reference=known if others_of(self.rows) is None else known[:1])


def others_of(rows: RowSet) -> RowSet | None:
    """Return the mismatched sequences from which the loss of single answers estimates a divergence; None without."""
    return rows.others if isinstance(rows, SingleAnswers | ReferencedRows) else None
