"""Rows that are all as long as the recipe allows, for an estimate that reads no data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from peftcli.data.rows.row_set import Row, RowSet
from peftcli.data.store.labels import LabelSpec
from peftcli.recipe.schema import ModelSpec, TaskName
from peftcli.tasks.task_info import RowKind
from peftcli.tasks.task_table import task_info


@dataclass(frozen=True)
class EqualRows:
    """So many rows of one length, with something to learn at each token.

    Args:
        kind: of the task's rows.
        labels: outputs of the head; 0 for tasks without one.
    """

    count: int
    length: int
    kind: RowKind
    labels: LabelSpec | None

    @property
    def lengths(self) -> npt.NDArray[np.int32]:
        """Tokens of each row."""
        return np.full(self.count, self.length, dtype=np.int32)

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Row]:
        return (self[index] for index in range(self.count))

    def __getitem__(self, index: int) -> Row:
        ids = np.ones(self.length, dtype=np.int32)
        return Row(ids, self._label(ids), "max_length", index)

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
        length: tokens of a row at most.
    """

    rows: RowSet
    length: int

    @property
    def lengths(self) -> npt.NDArray[np.int32]:
        """Tokens of each row."""
        return np.minimum(self.rows.lengths, self.length)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Row:
        row, length = self.rows[index], self.length
        cut: dict[str, Any] = {
            key: value[:length]
            for key in ("input_ids", "labels", "token_type_ids", "position_ids", "documents")
            if isinstance(value := getattr(row, key), np.ndarray)
            and value.dtype.kind != "f"  # labels by name are floats
        }
        return replace(row, **cut)


def assumed_labels(task: TaskName, spec: ModelSpec) -> LabelSpec | None:
    """Return the labels that a task has where nothing was read: as many as the recipe says, else two."""
    kind = task_info(task).label_kind
    if kind is None:
        return None
    problem = (spec.problem_type or kind) if kind == "single_label" else kind
    names = tuple(f"LABEL_{number}" for number in range(spec.num_labels or 2))
    return LabelSpec(problem, () if problem == "regression" else names)
