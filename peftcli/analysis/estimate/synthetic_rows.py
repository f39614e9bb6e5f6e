"""Rows that stand for a recipe's: as long as it allows, cut shorter, or compared before they were."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from peftcli.data.rows.referenced_rows import ReferencedRows, others_of
from peftcli.data.rows.row_set import Row, RowSet
from peftcli.data.rows.streaming import ListedRows, StreamedRows
from peftcli.data.store.labels import LabelSpec
from peftcli.recipe.schema import ModelSpec, Recipe, TaskName
from peftcli.tasks.task_info import RowKind
from peftcli.tasks.task_table import row_sequences, task_info


def with_reference(rows: RowSet, recipe: Recipe) -> RowSet:
    """Return rows with what a run computes of them before its first step: of preferences, numbers to compare with."""
    if task_info(recipe.task).rows != "preferences":
        return rows
    known = 2 if row_sequences(recipe) == 2 or others_of(rows) is not None else 1
    return ReferencedRows(rows, np.zeros((len(rows), known), dtype=np.float32))


FIRST_ROWS = 512
"""Rows of a stream that are looked at."""


def first_of_stream(rows: RowSet) -> tuple[RowSet, list[str]]:
    """Return the first rows in place of a stream, whose rows are not measured before they are read, and a note."""
    if not isinstance(rows, StreamedRows):
        return rows, []
    first = ListedRows(islice(rows, FIRST_ROWS))
    return first, [f"the rows are streamed: their lengths are those of the first {len(first):,}; later ones can differ"]


@dataclass(frozen=True)
class EqualRows:
    """So many rows of one length, with something to learn at each token.

    Args:
        length: tokens of each sequence of a row.
        kind: of the task's rows.
        sequences: of a row.
        labels: outputs of the head; 0 for tasks without one.
    """

    count: int
    length: int
    kind: RowKind
    sequences: int
    labels: LabelSpec | None

    @property
    def lengths(self) -> npt.NDArray[np.int32]:
        """Tokens of each row."""
        return np.full(self.count, self.length * self.sequences, dtype=np.int32)

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Row]:
        return (self[index] for index in range(self.count))

    def __getitem__(self, index: int) -> Row:
        sides = np.repeat(np.arange(self.sequences, dtype=np.uint8), self.length)
        ids = np.ones(len(sides), dtype=np.int32)
        types = sides if self.kind == "preferences" else None
        return Row(ids, self._label(ids), "max_length", index, types)

    def _label(self, ids: npt.NDArray[np.int32]) -> Any:
        if self.kind == "labelled":
            several = self.labels is not None and self.labels.problem == "multi_label"
            if several and self.labels is not None:
                return np.zeros(self.labels.num_labels, dtype=np.float32)
            return 0.0 if self.labels is not None and self.labels.problem == "regression" else 0
        return np.zeros_like(ids) if self.kind == "tagged" else ids


@dataclass(frozen=True)
class CutRows:
    """Rows as they are with a smaller `data.max_length`.

    Args:
        rows: as they are now.
        length: tokens of a sequence at most; of a preference each keeps its last ones, where the answer is.
    """

    rows: RowSet
    length: int
    kind: RowKind
    sequences: int

    @property
    def lengths(self) -> npt.NDArray[np.int32]:
        """Tokens of each row, at most."""
        return np.minimum(self.rows.lengths, self.length * self.sequences)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Row:
        row = self.rows[index]
        kept = self._kept(row)
        cut: dict[str, Any] = {
            key: value[kept]
            for key in ("input_ids", "labels", "token_type_ids", "position_ids", "documents")
            if isinstance(value := getattr(row, key), np.ndarray)
            and value.dtype.kind != "f"  # labels by name are floats
        }
        return replace(row, **cut)

    def _kept(self, row: Row) -> Any:
        """Return which tokens stay."""
        if self.kind != "preferences" or row.token_type_ids is None:
            return slice(self.length)
        sides = row.token_type_ids
        return np.concatenate([np.flatnonzero(sides == side)[-self.length :] for side in np.unique(sides)])


def assumed_labels(task: TaskName, spec: ModelSpec) -> LabelSpec | None:
    """Return the labels that a task has where nothing was read: as many as the recipe says, else two."""
    kind = task_info(task).label_kind
    if kind is None:
        return None
    problem = (spec.problem_type or kind) if kind == "single_label" else kind
    names = tuple(f"LABEL_{number}" for number in range(spec.num_labels or 2))
    return LabelSpec(problem, () if problem == "regression" else names)
