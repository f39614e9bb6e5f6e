"""A finished run in memory: it evaluates and predicts."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from peftcli.assembly.precision import Precision
from peftcli.data.rows.collation import Collator
from peftcli.data.rows.referenced_rows import Reference
from peftcli.data.rows.row_set import Row, RowSet
from peftcli.data.store.labels import LabelSpec
from peftcli.distributed.memory_errors import memory_for
from peftcli.distributed.processes import World
from peftcli.inference.compared_sets import RunStart, compared
from peftcli.inference.continuous_batch import Prompting, rows_at_once
from peftcli.inference.evaluator import FOR_EVALUATION, EvaluatedRow, Evaluator, make_evaluator
from peftcli.inference.metrics import wanted_metrics
from peftcli.layers.seeded import seeded
from peftcli.models.last_block import LastBlock
from peftcli.models.load.load_model import Loaded
from peftcli.process_state import libraries_quiet
from peftcli.protocol.attachment import Attachment
from peftcli.recipe.load_recipe import LoadedRecipe
from peftcli.recipe.schema import DataSpec, Recipe
from peftcli.tasks.decoding import GREEDY, Decoding
from peftcli.tasks.task import Batch, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WINDOW = 64
"""Batches of rows that are sorted by length together while predicting; results come in the order of the file."""


@dataclass(frozen=True)
class Predicting:
    """How predictions are made, as far as it is not the run's.

    Args:
        batch_size: rows at once on one device; None is the recipe's `per_device_eval_batch_size`.
        decoding: how the tokens of a generated text are chosen.
        seed: of sampling. What is drawn depends on it and on the rows of a batch.
        keep_columns: put the columns of each row into its line.
    """

    batch_size: int | None = None
    decoding: Decoding = GREEDY
    seed: int = 0
    keep_columns: bool = False


@dataclass(frozen=True)
class OpenedRun:
    """A finished run, ready to use.

    Args:
        model: in eval mode, parts attached and filled, nothing trainable.
        labels: of a classification task.
        precision: the weights' dtype.
        notes: what a user should know, such as another base dtype than in training.
        trained_format: format of the training rows; None where there is no record of it.
        start: the model before the first step, of a run; None of an untrained one.
        cut: a classifier's last block, which is computed for the position that its head reads.
        untouched: values of the base's own parameters that the run replaced (head, biases), for `close`.
    """

    loaded: LoadedRecipe
    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    attachment: Attachment
    task: Task
    labels: LabelSpec | None
    base: Loaded
    precision: Precision
    world: World
    notes: tuple[str, ...]
    untouched: Mapping[str, Tensor]
    trained_format: str | None = None
    start: RunStart | None = None
    cut: LastBlock | None = None

    @property
    def recipe(self) -> Recipe:
        """The run's resolved recipe."""
        return self.loaded.recipe

    @property
    def data_spec(self) -> DataSpec:
        """The recipe's data block, rows cut to the positions that the model has, as in training."""
        spec, positions = self.recipe.data or DataSpec(), self.task.settings.positions
        return spec if positions is None else spec.model_copy(update={"max_length": min(spec.max_length, positions)})

    def evaluate(self, sets: Mapping[str, RowSet]) -> dict[str, Any]:
        """Return `eval_*` metrics over row sets by name."""
        with libraries_quiet():
            return self._evaluator(sets)(self._compared(sets)).metrics

    def cut_texts(self, sets: Mapping[str, RowSet]) -> list[str]:
        """Return a note where texts that are compared with references end before these can; none where none do."""
        training = self.recipe.training
        if self.task.metric_kind != "text" or not wanted_metrics(self.task.default_metrics, training, list(sets)):
            return []
        collator, limit = Collator(self.tokenizer, self.task), training.max_new_tokens
        found = [collator.reference_tokens(row) > limit for rows in sets.values() for row in rows]
        if not any(found):
            return []
        return [
            f"{sum(found):,} of {len(found):,} references have more than {limit} tokens, where a generated text ends, "
            "so that it cannot equal them; --max-new-tokens sets another limit"
        ]

    def evaluate_rows(self, sets: Mapping[str, RowSet]) -> dict[str, list[EvaluatedRow]]:
        """Return what each row adds to the metrics of `evaluate`, by set, in the order of the rows."""
        evaluator = self._evaluator(sets)
        with libraries_quiet():
            return {name: evaluator.by_row(rows) for name, rows in self._compared(sets).items()}

    def evaluate_losses(self, rows: RowSet) -> list[EvaluatedRow]:
        """Return the loss of each row, in order; texts are not generated."""
        with libraries_quiet():
            return replace(self._evaluator([]), metrics=(), samples=0).by_row(rows)

    def log_probabilities(self, rows: RowSet) -> Reference:
        """Return the log-probabilities of each row's answers, of preferences: (rows, 2)."""
        with libraries_quiet():
            return self._evaluator([]).log_probabilities(rows)

    def _compared(self, sets: Mapping[str, RowSet]) -> Mapping[str, RowSet]:
        """Return rows with what the model before the first step makes of them, where the task compares with that."""
        return compared(sets, self.start, self.log_probabilities) if self.task.needs_reference else sets

    def _evaluator(self, sets: Collection[str]) -> Evaluator:
        metrics = wanted_metrics(self.task.default_metrics, self.recipe.training, list(sets))
        collator = Collator(self.tokenizer, self.task)
        return make_evaluator(
            self.recipe, self.model, self.task, collator, self.world, self.precision, metrics, self.cut
        )

    def predict(
        self, rows: RowSet, stop_ids: tuple[int, ...] = (), how: Predicting | None = None
    ) -> Iterator[dict[str, Any]]:
        """Yield `prediction` and `scores` of each row, in order.

        Among several processes each predicts a share; the main one yields all rows, the others yield none, and must be
        asked for them all the same.

        Args:
            stop_ids: tokens that end a generated text, besides the model's own.
            how: batch size and decoding; None is the recipe's, and greedy.
        """
        with memory_for("in a prediction", FOR_EVALUATION):
            yield from self._predict(rows, stop_ids, how or Predicting())

    def complete(self, row: Row, task: Task, *, seed: int = 0) -> dict[str, Any]:
        """Return `prediction` and what comes with it for one row.

        Args:
            task: this run's, as `Task.generating` returns it.
            seed: of sampling.
        """
        return self._predict_batch([row], task, seed)[0]

    def _predict_batch(self, rows: Sequence[Row], task: Task, seed: int) -> list[dict[str, Any]]:
        batch = self._batch(rows, task)
        drawing = seeded(seed, [self.world.device]) if task.settings.decoding.samples else nullcontext()
        short = nullcontext() if self.cut is None else self.cut.cut()
        with torch.no_grad(), self.precision.inference(self.world.device), drawing, short:
            return task.predict(self.model, batch)

    def _batch(self, rows: Sequence[Row], task: Task) -> Batch:
        return Collator(self.tokenizer, task).batch(rows, generate=True).to(self.world.device)

    def _predict(self, rows: RowSet, stop_ids: tuple[int, ...], how: Predicting) -> Iterator[dict[str, Any]]:
        task, world = self.task.generating(stop_ids, how.decoding), self.world
        size = how.batch_size or self.recipe.training.per_device_eval_batch_size
        predicting = Prompting(
            self.model,
            task,
            lambda chosen: self._batch([rows[row] for row in chosen], task),
            lambda: self.precision.inference(world.device),
            size,
            how.batch_size or rows_at_once(self.recipe, rows.lengths),
        )

        def predictions(chosen: Sequence[int]) -> list[dict[str, Any]]:
            return self._predict_batch([rows[row] for row in chosen], task, how.seed + chosen[0])

        taken = WINDOW * size * world.size
        for start in range(0, len(rows), taken):
            window = range(start, min(len(rows), start + taken))
            ordered = sorted(window, key=lambda row: -int(rows.lengths[row]))[world.rank :: world.size]
            found = dict(predicting.texts(ordered, predictions, halves=not world.strategy.sharded))
            for share in world.gather(found):
                found.update(share)
            if world.is_main:
                yield from (found[row] for row in window)

    def close(self) -> None:
        """Take the run's parts out of the base and put back what it replaced, so that another run can use the base."""
        if self.cut is not None:
            self.cut.remove()
        self.attachment.detach()
        for name, value in self.untouched.items():
            # dtype and values at once, in the same object: tied modules still share it. An opened run is never sharded
            self.model.get_parameter(name).data = value
