"""From rows to the batches of a task: for training, for evaluation, and prompts to generate from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from peftcli.data.rows.packing import join
from peftcli.data.rows.padding import collate, preference_tensors
from peftcli.data.rows.referenced_rows import ReferencedRows
from peftcli.data.rows.row_set import Row, RowSet, StoredRows, padded_length, sequences_of
from peftcli.data.rows.shared_prompts import join_sharing
from peftcli.ignored_label import IGNORED
from peftcli.models.packed_documents import PackingRoute
from peftcli.tasks.task import Batch, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Collator:
    """Makes batches of one task.

    Args:
        packing_route: how the model keeps packed documents apart.
        joins_rows: whether a training micro-batch's rows are put behind each other, without padding.
        shares_prompts: whether the prompt of a pair of answers is then in it once.
    """

    tokenizer: PreTrainedTokenizerBase
    task: Task
    packing_route: PackingRoute = "positions"
    joins_rows: bool = False
    shares_prompts: bool = False

    def __call__(self, rows: RowSet, chosen: Sequence[int]) -> Batch:
        """Return the rows with these numbers as one batch, on the CPU."""
        return self.batch([rows[index] for index in chosen])

    def micro_batch(self, rows: Sequence[Row]) -> Batch:
        """Return rows to train on as one batch, on the CPU: joined where the model allows it, padded elsewhere.

        A row alone has nothing to be kept apart from: without positions of its own, no mask is built for it.
        """
        sequences = self.sequences(rows)
        if not self.joins_rows or len(sequences) == 1:
            return self._made(sequences, rows)
        shares = self.shares_prompts and self.task.info.rows == "preferences"
        return self._made([join_sharing(rows) if shares else join(sequences)], rows)

    def sequences(self, rows: Sequence[Row]) -> list[Row]:
        """Return what the model reads of rows: the rows themselves, or both sequences of each preference."""
        if self.task.info.rows != "preferences":
            return list(rows)
        return [sequence for row in rows for sequence in sequences_of(row)]

    def lengths(self, rows: RowSet, *, joined: bool = False) -> npt.NDArray[np.int32]:
        """Return the tokens that each row takes in a batch of equal rows: of a preference both sequences count as the
        longer one, unless they are joined without padding. A prompt that they share counts twice: this is a bound.
        """
        inner = rows.rows if isinstance(rows, ReferencedRows) else rows
        if joined or self.task.info.rows != "preferences" or not isinstance(inner, StoredRows):
            return rows.lengths
        return inner.padded_lengths

    def length(self, row: Row) -> int:
        """Return the tokens that one row takes in a micro-batch to train on, as `lengths` counts them."""
        padded = self.task.info.rows == "preferences" and not self.joins_rows
        return padded_length(row) if padded else len(row.input_ids)

    def batch(self, rows: Sequence[Row], *, generate: bool = False) -> Batch:
        """Return rows as one batch, on the CPU.

        Args:
            generate: for prediction; decoder-only prompts are padded on the left, so that new tokens follow at once.
        """
        return self._made(self.sequences(rows), rows, generate=generate)

    def _made(self, sequences: Sequence[Row], rows: Sequence[Row], *, generate: bool = False) -> Batch:
        """Return sequences, padded or joined, as a batch; `rows` are what they were made of."""
        side = "left" if generate and self.task.info.reads == "text" else "right"
        kind = self.task.info.reads
        made = collate(sequences, self.tokenizer, kind, padding_side=side, packing_route=self.packing_route)
        if self.task.info.rows == "preferences" and not generate:
            made |= preference_tensors(rows)
        tokens = sum(len(row.input_ids) for row in rows)
        return self.task.batch(made, tokens, generate=generate and self.task.info.generates)

    def prompts(self, rows: RowSet, chosen: Sequence[int]) -> Batch:
        """Return prompts to generate from."""
        return self.batch([self._cut(rows[index])[0] for index in chosen], generate=True)

    def texts(self, row: Row) -> tuple[str, str]:
        """Return the reference of a row, and its prompt, as text."""
        prompt, ids = self._cut(row)
        return self._text(ids), self._text(prompt.input_ids)

    def reference_tokens(self, row: Row) -> int:
        """Return how many tokens the reference of a row has, the one that ends it included."""
        return len(self._cut(row)[1])

    def _cut(self, row: Row) -> tuple[Row, Any]:
        """Return what stands before the last supervised run, and that run; input and target for seq2seq.

        Of a preference it is the chosen sequence.
        """
        row = self.sequences([row])[0]
        labels = np.asarray(row.labels)
        if self.task.info.reads != "text":
            return replace(row, labels=None), labels[labels != IGNORED]
        supervised = np.flatnonzero(labels != IGNORED)
        if not len(supervised):
            return replace(row, labels=None), labels[:0]
        breaks = np.flatnonzero(np.diff(supervised) > 1)
        start = int(supervised[breaks[-1] + 1] if len(breaks) else supervised[0])
        start = max(1, start)  # a text that is supervised from its first token is continued from that one
        end = int(supervised[-1]) + 1
        prompt = replace(row, input_ids=row.input_ids[:start], labels=None, position_ids=None, documents=None)
        types = None if row.token_type_ids is None else row.token_type_ids[:start]
        return replace(prompt, token_type_ids=types), row.input_ids[start:end]

    def _text(self, ids: Any) -> str:
        text: str = self.tokenizer.decode(ids.tolist(), skip_special_tokens=True)
        return text
