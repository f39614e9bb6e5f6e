"""From row numbers to batches: the data package's collator, the order of an epoch, and prompts for generation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from peftcli.data.rows.batching import batches
from peftcli.data.rows.packing import join
from peftcli.data.rows.padding import collate
from peftcli.data.rows.row_set import Row, RowSet
from peftcli.ignored_label import IGNORED
from peftcli.models.packed_documents import PackingRoute
from peftcli.recipe.schema import SamplingStrategy
from peftcli.tasks.task import Batch, Task


@dataclass
class Collator:
    """Makes batches of one task.

    Args:
        seed, sampling: of the training order.
        packing_route: how the model keeps packed documents apart.
        joins_rows: whether a training micro-batch's rows are put behind each other, without padding.
    """

    tokenizer: Any
    task: Task
    seed: int = 0
    sampling: SamplingStrategy = "group_by_length"
    packing_route: PackingRoute = "positions"
    joins_rows: bool = False
    _epoch: tuple[int, list[list[int]]] | None = field(default=None, repr=False)

    def __call__(self, rows: RowSet, chosen: Sequence[int]) -> Batch:
        """Return the rows with these numbers as one batch, on the CPU."""
        return self.batch([rows[index] for index in chosen])

    def micro_batch(self, rows: RowSet, chosen: Sequence[int]) -> Batch:
        """Return rows to train on as one batch, on the CPU: joined where the model allows it, padded elsewhere.

        A row alone has nothing to be kept apart from: without positions of its own, no mask is built for it.
        """
        if not self.joins_rows or len(chosen) == 1:
            return self(rows, chosen)
        return self.batch([join([rows[index] for index in chosen])])

    def batch(self, rows: Sequence[Row], *, generate: bool = False) -> Batch:
        """Return rows as one batch, on the CPU.

        Args:
            generate: for prediction; decoder-only prompts are padded on the left, so that new tokens follow at once.
        """
        side = "left" if generate and self.task.info.rows == "text" else "right"
        made = collate(rows, self.tokenizer, self.task.info.rows, padding_side=side, packing_route=self.packing_route)
        tokens = sum(len(row.input_ids) for row in rows)
        return self.task.batch(made, tokens, generate=generate and self.task.info.generates)

    def epoch_rows(self, rows: RowSet, epoch: int, step_rows: int) -> list[list[int]]:
        """Return the rows of each step of an epoch; the same for every process and after a resume."""
        if self._epoch is None or self._epoch[0] != epoch:
            order = batches(rows, step_rows, seed=self.seed, epoch=epoch, sampling=self.sampling)
            self._epoch = (epoch, order)
        return self._epoch[1]

    def prompts(self, rows: RowSet, chosen: Sequence[int]) -> tuple[Batch, list[str], list[str]]:
        """Return prompts to generate from, with the reference texts and the prompts as text."""
        cut = [self._cut(rows[index]) for index in chosen]
        batch = self.batch([prompt for prompt, _ in cut], generate=True)
        references = [self._text(ids) for _, ids in cut]
        return batch, references, [self._text(prompt.input_ids) for prompt, _ in cut]

    def _cut(self, row: Row) -> tuple[Row, Any]:
        """Return what stands before the last supervised run, and that run; input and target for seq2seq."""
        labels = np.asarray(row.labels)
        if self.task.info.rows != "text":
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
