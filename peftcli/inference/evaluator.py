"""Evaluation: mean loss and metrics over whole validation sets, exact over any number of processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from peftcli.assembly.precision import Precision
from peftcli.data.rows.collation import Collator
from peftcli.data.rows.micro_batches import longest_first, split_by_tokens
from peftcli.data.rows.referenced_rows import Reference, others_of
from peftcli.data.rows.row_set import RowSet
from peftcli.distributed.equal_passes import equal_passes
from peftcli.distributed.memory_errors import memory_for
from peftcli.distributed.processes import World
from peftcli.distributed.sharding import drop_gathered
from peftcli.inference.continuous_batch import Prompting, rows_at_once
from peftcli.inference.halved_batches import in_halves
from peftcli.inference.metrics import compute_metrics
from peftcli.models.last_block import LastBlock
from peftcli.progress import stage
from peftcli.recipe.schema import Recipe
from peftcli.tasks.task import Batch, Evaluated, Task

EVAL_BATCH_TOKENS = {"cpu": 2048}
"""Padded tokens at once by kind of device; elsewhere the batch size alone decides."""


FOR_EVALUATION = (
    "lower training.per_device_eval_batch_size, data.max_length or training.max_new_tokens (--max-new-tokens), or hold "
    "the base in fewer bits (--base-dtype bfloat16)"
)
"""What takes less memory where nothing is trained."""

T = TypeVar("T")
Generated = tuple[int, Any, Any]
"""Number of a row, what was predicted, and what should have been."""


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Args:
        metrics: `eval_loss`, `eval_rows`, `eval_runtime` and the metrics over all sets, and `eval_NAME_*` of each
            named one.
        samples: of generated text, those of this process: `row`, `prompt`, `prediction`, `reference`.
    """

    metrics: dict[str, Any]
    samples: list[dict[str, Any]]


@dataclass(frozen=True)
class EvaluatedRow:
    """What an evaluation found for one row; metrics of a set follow from all of its rows.

    Args:
        loss_sum: plain loss, summed over what is supervised; `count` says how much that is.
        right: right tokens, where they are counted.
        prediction, reference: where a metric needs them, otherwise None.
    """

    loss_sum: float
    count: float
    right: float | None
    prediction: Any = None
    reference: Any = None


class EvaluationStopped(Exception):
    """A process was asked to stop before all rows were evaluated; every process raises this at the same point."""


def _never() -> bool:
    return False


@dataclass(frozen=True)
class Evaluator:
    """Everything that an evaluation needs, except the rows.

    Args:
        context: makes the context of a forward pass: the weights' dtype.
        metrics: names to compute beside the loss.
        batch_size: rows of one device in one batch.
        texts_at_once: from the lengths of prompts, how many texts are written at once.
        samples: rows of a set, from its first, whose generated text is shown.
        joined: makes the context in which rows are compared as in training, joined where the model allows it; without
            it they are padded.
        cut: a classifier's last block, which is computed for the position that its head reads; None for the whole.
    """

    model: nn.Module
    task: Task
    collator: Collator
    world: World
    context: Callable[[], AbstractContextManager[object]]
    metrics: Sequence[str]
    batch_size: int
    texts_at_once: Callable[[npt.NDArray[np.int32]], int]
    samples: int = 0
    joined: Callable[[Batch], AbstractContextManager[object]] | None = None
    cut: LastBlock | None = None

    @memory_for("in an evaluation", FOR_EVALUATION)
    def __call__(self, sets: Mapping[str, RowSet], stopping: Callable[[], bool] = _never) -> Evaluation:
        """Return the metrics over all sets.

        The model is left in the mode it was in; random numbers are not drawn. Compiled blocks run as they are.

        Args:
            stopping: whether this process was asked to stop; looked at before each batch.

        Raises:
            EvaluationStopped: a process was.
        """
        start = time.perf_counter()
        with self._evaluating():
            parts = {name: self._collect(rows, stopping) for name, rows in sets.items()}
        scores: dict[str, Any] = {}
        if len(parts) > 1 or "" not in parts:
            for name, part in parts.items():
                scores.update({f"eval_{name}_{key}": value for key, value in self._score([part]).items()})
        scores = {**{f"eval_{key}": value for key, value in self._score(list(parts.values())).items()}, **scores}
        scores["eval_rows"] = sum(len(rows) for rows in sets.values())
        scores["eval_runtime"] = round(time.perf_counter() - start, 3)
        samples = [sample for part in parts.values() for sample in part.samples]
        return Evaluation(scores, sorted(samples, key=lambda sample: sample["row"]))

    @memory_for("in an evaluation", FOR_EVALUATION)
    def by_row(self, rows: RowSet) -> list[EvaluatedRow]:
        """Return what each row of a set adds to the metrics, in the order of the rows; the same in each process."""
        found: dict[int, tuple[float, float, float | None]] = {}
        decided: list[Generated] = []
        with self._evaluating():
            mine, idle = self._share_of_all(rows)
            evaluated = partial(self._evaluated, rows, self._of_all(rows, _never), by_row=True)
            for chosen, result in self._passes(mine, idle, _never, evaluated):
                assert result.rows is not None  # asked for
                columns = [result.rows.loss_sums.tolist(), result.rows.counts.tolist()]
                columns.append([None] * len(chosen) if result.rows.right is None else result.rows.right.tolist())
                found.update(zip(chosen, zip(*columns, strict=True), strict=True))
                decided += zip(chosen, result.predictions, result.references, strict=False)
            decided += self._generated(rows, _never)[0]
        shares = self.world.gather((found, {row: (guess, truth) for row, guess, truth in decided}))
        terms = {row: values for share in shares for row, values in share[0].items()}
        pairs = {row: values for share in shares for row, values in share[1].items()}
        return [EvaluatedRow(*terms[row], *pairs.get(row, ())) for row in range(len(rows))]

    @memory_for("while the reference's log-probabilities were computed", FOR_EVALUATION)
    def log_probabilities(self, rows: RowSet) -> Reference:
        """Return the log-probabilities of each row's answers, in the order of the rows; the same in each process.

        Of single answers that of the answer and that of its mismatched sequence.
        """
        others = others_of(rows)
        parts = [self._log_probabilities(each) for each in ([rows] if others is None else [rows, others])]
        return np.concatenate(parts, 1)

    def _log_probabilities(self, rows: RowSet) -> Reference:
        found: dict[int, list[float]] = {}

        def compute(chosen: Sequence[int]) -> torch.Tensor:
            if self.joined is None:
                return self.task.log_probabilities(self.model, self.collator(rows, chosen).to(self.world.device))
            batch = self.collator.micro_batch([rows[number] for number in chosen]).to(self.world.device)
            with self.joined(batch):
                return self.task.log_probabilities(self.model, batch)

        with self._evaluating():
            mine, idle = self._share_of_all(rows)
            for chosen, result in self._passes(mine, idle, _never, compute):
                found.update(zip(chosen, result.tolist(), strict=True))
        together = {row: values for share in self.world.gather(found) for row, values in share.items()}
        return np.array([together[row] for row in range(len(rows))], dtype=np.float32).reshape(len(rows), -1)

    def _of_all(self, rows: RowSet, stopping: Callable[[], bool]) -> torch.Tensor | None:
        """Return what the loss of each row takes from all rows of the set; None where it takes nothing."""
        others = others_of(rows)
        if others is None:
            return None
        mine, idle = self._share_of_all(others)
        device, sums = self.world.device, []
        for _, found in self._passes(
            mine,
            idle,
            stopping,
            lambda chosen: self.task.look_ahead(self.model, self.collator(others, chosen).to(device)),
        ):
            sums.append(found)
        own = torch.stack(sums).cpu().double().sum().item() if sums else 0.0
        return torch.tensor(sum(self.world.gather(own)) / max(1, len(others)), dtype=torch.float32, device=device)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Put the model in eval mode, without gradients and compiled blocks, and leave it in the mode it was in."""
        training = self.model.training
        self.model.eval()
        try:
            short = nullcontext() if self.cut is None else self.cut.cut()
            with torch.no_grad(), torch.compiler.set_stance("force_eager"), self.context(), short:
                yield
        finally:
            self.model.train(training)
            drop_gathered(self.model)

    def _share_of_all(self, rows: RowSet) -> tuple[list[list[int]], list[int]]:
        """Return `_share` of all rows, in batches as large as this kind of device computes at once."""
        return self._share(rows, range(len(rows)), EVAL_BATCH_TOKENS.get(self.world.device.type))

    def _share(self, rows: RowSet, chosen: range, limit: int | None) -> tuple[list[list[int]], list[int]]:
        """Return this process's batches of the chosen rows, and the shortest row, which is the same in each process."""
        lengths = self.collator.lengths(rows)
        order = longest_first(chosen, lengths)
        own = order[self.world.rank :: self.world.size]
        return list(split_by_tokens(own, lengths, self.batch_size, limit)), order[-1:]

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

    def _collect(self, rows: RowSet, stopping: Callable[[], bool]) -> _Collected:
        """Evaluate this process's share of a set, and put all shares together in the order of the rows.

        Raises:
            EvaluationStopped: a process was asked to stop.
        """
        mine, idle = self._share_of_all(rows)
        sums: list[torch.Tensor] = []
        count, counts_right = 0.0, False
        found: list[Generated] = []
        evaluated = partial(self._evaluated, rows, self._of_all(rows, stopping))
        for chosen, result in self._passes(mine, idle, stopping, evaluated):
            right = result.terms.loss_sum.new_zeros(()) if result.right is None else result.right.float()
            sums.append(torch.stack([result.terms.loss_sum.float(), right]))
            counts_right = counts_right or result.right is not None
            count += result.terms.count
            found += zip(chosen, result.predictions, result.references, strict=False)
        generated, samples = self._generated(rows, stopping)
        found += generated
        # read from the device once; summed in float64, so that the order of batches and shards makes no difference
        loss, right_tokens = torch.stack(sums).cpu().double().sum(0).tolist() if sums else (0.0, 0.0)
        own = _Share(loss, right_tokens if counts_right else None, count, found, stopping())
        shares = self.world.gather(own)
        if any(share.stopped for share in shares):
            raise EvaluationStopped
        ordered = sorted((item for share in shares for item in share.found), key=lambda item: item[0])
        counted = [share.right for share in shares if share.right is not None]
        return _Collected(
            loss_sum=sum(share.loss_sum for share in shares),
            right=sum(counted) if counted else None,
            count=sum(share.count for share in shares),
            predictions=[item[1] for item in ordered],
            references=[item[2] for item in ordered],
            samples=samples,
        )

    def _generated(self, rows: RowSet, stopping: Callable[[], bool]) -> tuple[list[Generated], list[dict[str, Any]]]:
        """Return this process's generated rows, all for a text metric and none otherwise, and the samples of them."""
        if not self.task.info.generates:
            return [], []
        of_texts = bool(self.metrics) and self.task.metric_kind == "text"
        wanted = len(rows) if of_texts else min(self.samples, len(rows))
        found: list[Generated] = []
        samples: list[dict[str, Any]] = []
        for row, out, reference, prompt in self._texts(rows, wanted, stopping):
            found.append((row, out["prediction"], reference))
            if row < self.samples:
                samples.append({"row": row, "prompt": prompt, "prediction": out["prediction"], "reference": reference})
        return found if of_texts else [], samples

    def _texts(
        self, rows: RowSet, wanted: int, stopping: Callable[[], bool]
    ) -> Iterator[tuple[int, dict[str, Any], str, str]]:
        """Yield the number, the prediction, the reference and the prompt of this process's share of the first rows."""
        mine, idle = self._share(rows, range(wanted), None)

        def predictions(chosen: Sequence[int]) -> list[dict[str, Any]]:
            return self.task.predict(self.model, self._prompts(rows, chosen))

        def alone() -> Iterator[tuple[int, dict[str, Any]]]:
            """Yield rows as their texts end, until a stop is asked for."""
            prompts, at_once = partial(self._prompts, rows), self.texts_at_once(self.collator.lengths(rows))
            prompting = Prompting(self.model, self.task, prompts, self.context, self.batch_size, at_once)
            order = [] if stopping() else [row for batch in mine for row in batch]
            with stage("evaluating", len(order)) as advance:
                for text in prompting.texts(order, predictions, halves=self.world.size == 1):
                    yield text
                    advance(1)
                    if stopping():
                        return

        def together() -> Iterator[tuple[int, dict[str, Any]]]:
            for chosen, lines in self._passes(mine, idle, stopping, predictions):
                yield from zip(chosen, lines, strict=True)

        for row, line in together() if self.world.strategy.sharded else alone():
            yield row, line, *self.collator.texts(rows[row])

    def _passes(
        self,
        batches: Sequence[list[int]],
        idle: Sequence[int],
        stopping: Callable[[], bool],
        compute: Callable[[Sequence[int]], T],
    ) -> Iterator[tuple[Sequence[int], T]]:
        """Yield each batch of this process with what is computed for it, in halves where one process lacks memory."""
        with stage("evaluating", sum(map(len, batches))) as advance:
            for batch, counts in equal_passes(self.world, batches, idle, stopping):
                for chosen, result in in_halves(batch, compute, allowed=self.world.size == 1):
                    if counts:
                        yield chosen, result
                        advance(len(chosen))

    def _evaluated(
        self, rows: RowSet, of_all: torch.Tensor | None, chosen: Sequence[int], by_row: bool = False
    ) -> Evaluated:
        batch = replace(self.collator(rows, chosen).to(self.world.device), of_all=of_all)
        return self.task.evaluate(self.model, batch, by_row=by_row)

    def _prompts(self, rows: RowSet, chosen: Sequence[int]) -> Batch:
        return self.collator.prompts(rows, chosen).to(self.world.device)


@dataclass(frozen=True)
class _Share:
    """One process's part of a set.

    Args:
        right: right tokens; None where they are not counted.
        found: predictions and references by row.
        stopped: whether the process was asked to stop before the end.
    """

    loss_sum: float
    right: float | None
    count: float
    found: list[Generated]
    stopped: bool


@dataclass(frozen=True)
class _Collected:
    """A whole set's sums, predictions and references, and this process's samples."""

    loss_sum: float
    right: float | None
    count: float
    predictions: list[Any]
    references: list[Any]
    samples: list[dict[str, Any]]


def make_evaluator(
    recipe: Recipe,
    model: nn.Module,
    task: Task,
    collator: Collator,
    world: World,
    precision: Precision,
    metrics: Sequence[str],
    cut: LastBlock | None = None,
) -> Evaluator:
    """Return the evaluator of a live model; it computes in the weights' dtype."""
    return Evaluator(
        model=model,
        task=task,
        collator=collator,
        world=world,
        context=lambda: precision.inference(world.device),
        metrics=metrics,
        batch_size=recipe.training.per_device_eval_batch_size,
        texts_at_once=partial(rows_at_once, recipe),
        samples=recipe.training.eval_generate if task.info.generates else 0,
        cut=cut,
    )
