"""Evaluation: mean loss and metrics over whole validation sets, exact over any number of processes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from peftcli.data.rows.collation import Collator
from peftcli.distributed.processes import World
from peftcli.inference.metrics import compute_metrics
from peftcli.tasks.task import Task
from peftcli.training.speed.compiled_blocks import uncompiled
from peftcli.training.step_plan import split_by_tokens

EVAL_BATCH_TOKENS = {"cpu": 2048}
"""Padded tokens at once by kind of device; elsewhere the batch size alone decides."""


@dataclass
class Evaluator:
    """Everything that an evaluation needs but the rows.

    Args:
        context: makes the context of a forward pass: the weights' dtype.
        metrics: names to compute beside the loss.
        batch_size: rows of one device in one batch.
    """

    model: nn.Module
    task: Task
    collator: Collator
    world: World
    context: Any
    metrics: Sequence[str]
    batch_size: int
    samples: int = 0
    sample_rows: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self, sets: Mapping[str, Any]) -> dict[str, Any]:
        """Return `eval_loss`, `eval_rows`, `eval_runtime` and the metrics over all sets, and
        `eval_NAME_*` of each named one.

        The model is left in the mode it was in; random numbers are not drawn.
        """
        start = time.perf_counter()
        training = self.model.training
        self.model.eval()
        self.sample_rows = []
        try:
            with torch.no_grad(), uncompiled(), self._context():
                parts = {name: self._collect(rows) for name, rows in sets.items()}
        finally:
            self.model.train(training)
        scores: dict[str, Any] = {}
        if len(parts) > 1 or "" not in parts:
            for name, part in parts.items():
                scores.update({f"eval_{name}_{key}": value for key, value in self._score([part]).items()})
        scores = {**{f"eval_{key}": value for key, value in self._score(list(parts.values())).items()}, **scores}
        scores["eval_rows"] = sum(len(rows) for rows in sets.values())
        scores["eval_runtime"] = round(time.perf_counter() - start, 3)
        return scores

    def _context(self) -> AbstractContextManager[object]:
        context: AbstractContextManager[object] = self.context()
        return context

    def _score(self, parts: Sequence[_Collected]) -> dict[str, Any]:
        count = sum(part.count for part in parts)
        loss = sum(part.loss_sum for part in parts) / count if count else float("nan")
        scores: dict[str, Any] = {"loss": loss, **self.task.derived_metrics(loss)}
        if any(part.right is not None for part in parts):
            scores["token_accuracy"] = sum(part.right or 0.0 for part in parts) / count if count else float("nan")
        predictions = [item for part in parts for item in part.predictions]
        references = [item for part in parts for item in part.references]
        if self.metrics and predictions:
            scores.update(compute_metrics(self.metrics, self.task.metric_kind, predictions, references))
        return scores

    def _collect(self, rows: Any) -> _Collected:
        """Evaluate this process's share of a set, and put all shares together in the order of the rows."""
        mine = by_length(rows.lengths, range(len(rows)))[self.world.rank :: self.world.size]
        limit = EVAL_BATCH_TOKENS.get(self.world.device.type)
        sums: list[torch.Tensor] = []
        count, counts_right = 0.0, False
        found: list[tuple[int, Any, Any]] = []
        for chosen in split_by_tokens(mine, rows.lengths, self.batch_size, limit):
            batch = self.collator(rows, chosen).to(self.world.device)
            result = self.task.evaluate(self.model, batch)
            right = result.terms.loss_sum.new_zeros(()) if result.right is None else result.right.float()
            sums.append(torch.stack([result.terms.loss_sum.float(), right]))
            counts_right = counts_right or result.right is not None
            count += result.terms.count
            found += zip(chosen, result.predictions, result.references, strict=False)
        found += self._generated(rows)
        # read from the device once; summed in float64, so that the order of batches and shards does not show
        own = (torch.stack(sums).cpu().double().sum(0).tolist() if sums else [0.0, 0.0], count, found)
        shares = self.world.gather(own)
        ordered = sorted((item for share in shares for item in share[2]), key=lambda item: item[0])
        return _Collected(
            loss_sum=sum(share[0][0] for share in shares),
            right=sum(share[0][1] for share in shares) if counts_right else None,
            count=sum(share[1] for share in shares),
            predictions=[item[1] for item in ordered],
            references=[item[2] for item in ordered],
        )

    def _generated(self, rows: Any) -> list[tuple[int, Any, Any]]:
        """Return (row, text, reference) of generated rows: all for a text metric, some as samples."""
        if not self.task.info.generates:
            return []
        wanted = len(rows) if self.metrics else min(self.samples, len(rows))
        mine = by_length(rows.lengths, range(wanted))[self.world.rank :: self.world.size]
        found: list[tuple[int, Any, Any]] = []
        for chosen in split_by_tokens(mine, rows.lengths, self.batch_size, None):
            batch, references, prompts = self.collator.prompts(rows, chosen)
            predicted = self.task.predict(self.model, batch.to(self.world.device))
            for row, out, reference, prompt in zip(chosen, predicted, references, prompts, strict=True):
                found.append((row, out["prediction"], reference))
                if row < self.samples:
                    sample = {"row": row, "prompt": prompt, "prediction": out["prediction"], "reference": reference}
                    self.sample_rows.append(sample)
        self.sample_rows.sort(key=lambda sample: sample["row"])
        return found if self.metrics else []


@dataclass(frozen=True)
class _Collected:
    """A whole set's sums, predictions and references."""

    loss_sum: float
    right: float | None
    count: float
    predictions: list[Any]
    references: list[Any]


def by_length(lengths: np.ndarray[Any, Any], rows: Sequence[int]) -> list[int]:
    """Return row numbers, longest first: little padding, and a batch too large for memory fails at once."""
    return sorted(rows, key=lambda row: (-int(lengths[row]), row))
