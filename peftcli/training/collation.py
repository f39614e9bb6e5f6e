"""From row numbers to batches: the data package's collator, the order of an epoch, and prompts for generation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from peftcli.data.batching import batches, collate
from peftcli.training.tasks import Batch, Task


@dataclass
class Collator:
    """Makes batches of one task.

    Args:
        seed, group_by_length: of the training order.
    """

    tokenizer: Any
    task: Task
    seed: int = 0
    group_by_length: bool = True
    _epoch: tuple[int, list[list[int]]] | None = field(default=None, repr=False)

    def __call__(self, rows: Any, chosen: Sequence[int], *, padding_side: str = "right") -> Batch:
        """Return the rows with these numbers as one batch, on the CPU."""
        return self.task.batch(self._collate([rows[index] for index in chosen], padding_side))

    def _collate(self, rows: Sequence[Any], padding_side: str) -> Any:
        return collate(rows, self.tokenizer, self.task.name, padding_side=padding_side)

    def epoch_rows(self, rows: Any, epoch: int, step_rows: int) -> list[list[int]]:
        """Return the rows of each step of an epoch; the same for every process and after a resume."""
        if self._epoch is None or self._epoch[0] != epoch:
            order = batches(
                rows, step_rows, seed=self.seed, epoch=epoch, group_by_length=self.group_by_length, world=1, rank=0
            )
            self._epoch = (epoch, order)
        return self._epoch[1]
