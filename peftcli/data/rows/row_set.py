"""Rows as training sees them: a view on a store with the labels numbered for the model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from peftcli.data.encode.encoded import TRUNCATED
from peftcli.data.store.labels import LabelSpec
from peftcli.data.store.token_store import Store
from peftcli.ignored_label import IGNORED

RowLabels = npt.NDArray[np.int32] | npt.NDArray[np.float32] | int | float | None


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the model's input.

    Args:
        input_ids: (tokens,) int32.
        labels: (tokens,) int32 with -100 where nothing is learnt (language models, tags; target tokens for
            sequence-to-sequence), a class number, a number, a float32 0/1 vector, or None.
        source: file that the row comes from.
        row: its line or element there.
        token_type_ids: (tokens,) segments of a text pair, or None; of a preference 0 in the chosen sequence and 1
            in the rejected one.
        position_ids: (tokens,) restarting at every document of a packed row, or None.
        documents: (tokens,) number of the document of each token of a packed row, or None.
        reference: (sequences,) log-probability of the answer in each sequence of a preference under the model before
            the first step, or None.
    """

    input_ids: npt.NDArray[np.int32]
    labels: RowLabels
    source: str
    row: int
    token_type_ids: npt.NDArray[np.uint8] | None = None
    position_ids: npt.NDArray[np.int32] | None = None
    documents: npt.NDArray[np.int32] | None = None
    reference: npt.NDArray[np.float32] | None = None


def sequences_of(row: Row) -> list[Row]:
    """Return the sequences of a preference as rows of a causal model, chosen before rejected; a prompt is one."""
    sides, labels = row.token_type_ids, row.labels
    if sides is None:
        return [row]
    found = []
    for number in np.unique(sides):
        own = sides == number
        part = labels[own] if isinstance(labels, np.ndarray) else None
        if part is not None:
            part[:1] = IGNORED  # nothing stands before the first token of a sequence
        found.append(replace(row, input_ids=row.input_ids[own], labels=part, token_type_ids=None, reference=None))
    return found


def padded_length(row: Row) -> int:
    """Return the tokens that a preference takes in a padded batch: its sequences are as long as the longer one."""
    found = [len(sequence.input_ids) for sequence in sequences_of(row)]
    return len(found) * max(found)


class RowSet(Protocol):
    """Rows by number; `lengths` are known without reading them."""

    @property
    def lengths(self) -> npt.NDArray[np.int32]:
        """Tokens of each row."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Row: ...

    def __iter__(self) -> Iterator[Row]: ...


class StoredRows:
    """Some rows of a store, in an order of their own.

    Args:
        store: where the rows are.
        index: their numbers in the store, in order.
        spec: the labels of the model, None for language models.
    """

    def __init__(self, store: Store, index: npt.NDArray[np.int64], spec: LabelSpec | None) -> None:
        self.store, self.index, self.spec = store, index, spec
        self._numbers = _renumber(store.meta.get("names", []), spec)

    def __len__(self) -> int:
        return len(self.index)

    def __iter__(self) -> Iterator[Row]:
        return (self[number] for number in range(len(self)))

    @property
    def lengths(self) -> npt.NDArray[np.int32]:
        """Tokens of each row."""
        return self.store.lengths[self.index]

    @property
    def padded_lengths(self) -> npt.NDArray[np.int32]:
        """Tokens that each preference takes in a padded batch, as `padded_length` counts them."""
        store, lengths = self.store, self.lengths
        if store.types is None or not len(store):
            return lengths
        second = np.add.reduceat(store.types, store.offsets[:-1], dtype=np.int32)[self.index]
        both = (second > 0) & (second < lengths)
        return np.where(both, 2 * np.maximum(second, lengths - second), lengths)

    @property
    def target_lengths(self) -> npt.NDArray[np.int32]:
        """Tokens of each row's target, of rows that have one beside their input."""
        return np.diff(self.store.label_offsets)[self.index].astype(np.int32)

    def __getitem__(self, index: int) -> Row:
        store, row = self.store, int(self.index[index])
        start, end = int(store.offsets[row]), int(store.offsets[row + 1])
        ids = np.array(store.ids[start:end])
        source, number = store.place(row)
        types = None if store.types is None else np.array(store.types[start:end])
        return Row(ids, self._labels(row, start, end, ids), source, number, types)

    @property
    def cut(self) -> npt.NDArray[np.bool_]:
        """Whether each row lost tokens to max_length (or was split by it)."""
        return np.asarray(self.store.raw("status")[self.store.origin[self.index]] == TRUNCATED, dtype=np.bool_)

    @property
    def words(self) -> npt.NDArray[np.int64] | None:
        """Words of each row whose tags are to be predicted, None for other rows."""
        if self.store.labels is None or self.store.value is None:
            return None
        return self.store.value[self.index].astype(np.int64)

    def label_counts(self) -> npt.NDArray[np.int64]:
        """Return how often each label of the model occurs in these rows: (labels,)."""
        count = self.spec.num_labels if self.spec else 0
        store, out = self.store, np.zeros(count, dtype=np.int64)
        if store.value is not None:
            numbers = self._numbers[store.value[self.index].astype(np.int64)]
            return np.bincount(numbers[numbers >= 0], minlength=count)
        if store.labels is None:
            return out
        for row in self.index.tolist():
            labels = store.labels[int(store.label_offsets[row]) : int(store.label_offsets[row + 1])]
            numbers = self._numbers[labels[labels >= 0]]
            out += np.bincount(numbers[numbers >= 0], minlength=count)
        return out

    def _labels(self, row: int, start: int, end: int, ids: npt.NDArray[np.int32]) -> Any:
        store = self.store
        if store.mask is not None:
            return np.where(store.mask[start:end], ids, np.int32(IGNORED))
        if store.labels is not None:
            labels = np.array(store.labels[int(store.label_offsets[row]) : int(store.label_offsets[row + 1])])
            return self._named(labels)
        if store.value is None:
            return None
        value = float(store.value[row])
        return value if self.spec is None or self.spec.problem == "regression" else int(self._numbers[int(value)])

    def _named(self, labels: npt.NDArray[np.int32]) -> Any:
        """Return tags or several labels as the model's numbers; target tokens stay as they are."""
        if self.spec is None or not len(self._numbers):
            return labels
        if self.spec.problem == "multi_label":
            vector = np.zeros(self.spec.num_labels, dtype=np.float32)
            vector[self._numbers[labels]] = 1.0
            return vector
        return np.where(labels < 0, np.int32(IGNORED), self._numbers[np.maximum(labels, 0)]).astype(np.int32)


def _renumber(stored: list[str], spec: LabelSpec | None) -> npt.NDArray[np.int32]:
    """Return the model's number for each label number of a store; -1 for names that the model does not know."""
    if spec is None:
        return np.empty(0, dtype=np.int32)
    numbers = {name: number for number, name in enumerate(spec.names)}
    return np.array([numbers.get(name, -1) for name in stored], dtype=np.int32)
