"""Rows of preference tuning with the log-probabilities of their answers under the model before the first step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from peftcli.data.rows.row_set import Row, RowSet

Reference = npt.NDArray[np.float32]
"""(rows, 2): of the chosen answer and of the rejected one."""


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
    def lengths(self) -> npt.NDArray[np.int32]:
        """Tokens of each row."""
        return self.rows.lengths

    def __getitem__(self, index: int) -> Row:
        return replace(self.rows[index], reference=self.reference[index])
