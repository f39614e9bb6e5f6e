"""The micro-batches of every step, and threads that make those of the next steps ahead.

The rows of a step do not depend on how the step is computed: the same ones in the same step, whether as one batch, as
accumulated micro-batches, or on several processes. Random masks are drawn by seed, step and row (`layers.row_draws`).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch

from peftcli.data.rows.batching import epoch_batches
from peftcli.data.rows.collation import Collator
from peftcli.data.rows.micro_batches import Lengths, longest_first, micro_batches, split_by_tokens
from peftcli.data.rows.referenced_rows import others_of
from peftcli.data.rows.row_set import Row, RowSet
from peftcli.data.rows.streaming import StreamedRows
from peftcli.distributed.processes import World
from peftcli.layers.row_draws import DrawnRows
from peftcli.recipe.schema import Recipe, TrainingSpec
from peftcli.tasks.task import Batch
from peftcli.training.step_plan import StepPlan

ROWS_AT_ONCE, TOKENS_AT_ONCE = 8, 4096
"""Rows that all processes read together, padded tokens among them at most. A longer row stands alone."""


class StepBatches:
    """Makes this process's micro-batches of a step: a function of the recipe's seed and the step, and of nothing else.

    Args:
        rows: to train on.
        max_tokens: bound on a micro-batch's tokens; None without one.

    Attributes:
        lengths: tokens that each row takes in a micro-batch.
    """

    def __init__(
        self, recipe: Recipe, rows: RowSet, collator: Collator, plan: StepPlan, world: World, max_tokens: int | None
    ) -> None:
        self.spec, self.rows, self.collator = recipe.training, rows, collator
        self.world, self.max_tokens = world, max_tokens
        self._seed, self._plan = recipe.seed, plan
        self.lengths = collator.lengths(rows, joined=collator.joins_rows)
        self._epoch: tuple[int, list[list[int]]] | None = None

    def use_rows(self, rows: RowSet) -> None:
        """Make batches of these rows from now on: the same as before, with more in each."""
        self.rows = rows

    def __call__(self, step: int) -> list[Batch]:
        """Return the micro-batches of the step with this index, counted from 0, on the CPU."""
        return self.collate(self.read(step))

    def read(self, step: int) -> list[Share]:
        """Return the rows of each micro-batch of a step; one caller at a time, since a stream is read in order."""
        epoch, index = self._plan.position(step)
        numbers = self._epoch_rows(epoch)[index]
        read = {number: self.rows[number] for number in sorted(numbers)} if isinstance(self.rows, StreamedRows) else {}
        lengths: Lengths = {number: self.collator.length(row) for number, row in read.items()} if read else self.lengths
        order = longest_first(numbers, lengths)
        shares = self._shares(order, lengths, self.world.rank)
        idle = 0
        if self.world.strategy.sharded:
            idle = max(len(self._shares(order, lengths, rank)) for rank in range(self.world.size)) - len(shares)
        made = [
            Share(step, share, [read.get(number) or self.rows[number] for number in share], idle=index >= len(shares))
            for index, share in enumerate([*shares, *[order[-1:]] * idle])
        ]
        return [*made, *self._ahead(step, numbers)]

    def _ahead(self, step: int, numbers: Sequence[int]) -> list[Share]:
        """Return this process's mismatched sequences of a step; of a divided base as many micro-batches in each."""
        others = others_of(self.rows)
        if others is None:
            return []
        order, size = longest_first(numbers, others.lengths), self.spec.per_device_train_batch_size
        every = [
            split_by_tokens(order[rank :: self.world.size], others.lengths, size, self.max_tokens)
            for rank in range(self.world.size)
        ]
        own = every[self.world.rank]
        idle = max(map(len, every)) - len(own) if self.world.strategy.sharded else 0
        return [
            Share(step, share, [others[number] for number in share], idle=index >= len(own), ahead=True)
            for index, share in enumerate([*own, *[order[-1:]] * idle])
        ]

    def _shares(self, order: Sequence[int], lengths: Lengths, rank: int) -> list[list[int]]:
        """Return the micro-batches of one process, as numbers of rows."""
        return micro_batches(
            order[rank :: self.world.size],
            lengths,
            batch_size=self.spec.per_device_train_batch_size,
            max_tokens=self.max_tokens,
            joined=self.collator.joins_rows,
        )

    def of_all_processes(self) -> Iterator[list[Row]]:
        """Yield the rows of each step from the first on, a few at a time; every process gets the same.

        How many at a time depends on the rows alone: what is made of them is the same on any number of processes.
        """
        for step in range(self._plan.total_steps):
            epoch, index = self._plan.position(step)
            taken: list[Row] = []
            longest = 0
            for number in sorted(self._epoch_rows(epoch)[index]):  # a stream is read in order
                row = self.rows[number]
                own = self.collator.length(row)
                longest = max(longest, own)
                if taken and (len(taken) == ROWS_AT_ONCE or (len(taken) + 1) * longest > TOKENS_AT_ONCE):
                    yield taken
                    taken, longest = [], own
                taken.append(row)
            yield taken

    def collate(self, shares: Sequence[Share]) -> list[Batch]:
        """Return rows as batches of the task; for any number of callers at a time."""
        made = [self._batch(share) for share in shares if not share.ahead]
        ahead = tuple(self._finished(self.collator.batch(share.rows), share) for share in shares if share.ahead)
        return [replace(made[0], ahead=ahead), *made[1:]] if ahead else made

    def _batch(self, share: Share) -> Batch:
        batch = self.collator.micro_batch(share.rows)
        rows = self.collator.sequences(share.rows)
        documents = batch.documents().lengths if batch.rows < len(rows) else ()
        lengths, widths = _sequences(rows, batch)
        ends = [documents] if documents else lengths
        each = len(rows) // len(share.rows)  # sequences of a row
        numbers = [each * number + place for number in share.numbers for place in range(each)]
        drawn = DrawnRows.of_step(self._seed, share.step, numbers, ends, widths, joined=bool(documents))
        return self._finished(replace(batch, drawn=drawn), share)

    def _finished(self, batch: Batch, share: Share) -> Batch:
        if share.idle:
            batch = batch.as_idle()
        # only from pinned memory does a copy to the GPU not wait
        return batch.pinned() if self.world.device.type == "cuda" else batch

    def _epoch_rows(self, epoch: int) -> list[list[int]]:
        """Return the rows of each step of an epoch; the same for every process and after a resume."""
        if self._epoch is None or self._epoch[0] != epoch:
            sampling = self.spec.train_sampling_strategy
            order = epoch_batches(self.rows, self._plan.step_rows, seed=self._seed, epoch=epoch, sampling=sampling)
            self._epoch = (epoch, order)
        return self._epoch[1]


@dataclass(frozen=True)
class Share:
    """The rows of one micro-batch of one process, and their numbers among the training rows.

    Args:
        idle: whether they are computed only because other processes have more micro-batches, and the base is divided.
        ahead: whether they are the rows' mismatched sequences, which are looked at before any loss.
    """

    step: int
    numbers: list[int]
    rows: list[Row]
    idle: bool = False
    ahead: bool = False


def _sequences(rows: Sequence[Row], batch: Batch) -> tuple[list[list[int]], list[int]]:
    """Return the tokens of each row, and those of the padded tensors, of each sequence that the model reads."""
    given = {key: batch.inputs[key].shape[1] for key in ("input_ids", "decoder_input_ids") if key in batch.inputs}
    own = {"input_ids": [len(row.input_ids) for row in rows]}
    own["decoder_input_ids"] = [len(row.labels) if isinstance(row.labels, np.ndarray) else 0 for row in rows]
    added = {key: width - max(own[key]) for key, width in given.items()}  # virtual tokens
    return [[length + added[key] for length in own[key]] for key in given], list(given.values())


def worker_threads(spec: TrainingSpec, device: torch.device) -> int:
    """Return how many threads prepare batches; auto is one on CUDA, so that the GPU does not wait for them."""
    if spec.dataloader_num_workers == "auto":
        return 1 if device.type == "cuda" else 0
    return spec.dataloader_num_workers


@contextmanager
def prepared_ahead(batches: StepBatches, steps: range, workers: int) -> Iterator[Iterator[list[Batch]]]:
    """Yield the micro-batches of each step, in order; with workers, those of the next steps are made meanwhile.

    A worker is a thread that makes one step's batches at a time. Threads are enough: rows are tokenised already, what
    is left is padding and stacking, and torch computes the steps without holding Python's lock. Rows are read by one
    worker at a time, in the order of the steps, so that a stream is never read backwards. What a worker raises is
    raised where its step's batches are asked for. At the end, whatever ended it, no thread is left.

    Args:
        steps: indices, counted from 0.
        workers: threads, and steps that are prepared ahead; 0 makes the batches of a step when they are asked for.
    """
    if not workers:
        yield (batches(step) for step in steps)
        return
    turns = _Turns(steps.start)

    def prepare(step: int) -> list[Batch]:
        with turns.of(step):
            rows = batches.read(step)
        return batches.collate(rows)

    pool = ThreadPoolExecutor(workers, thread_name_prefix="batches")
    try:
        yield _in_order(lambda step: pool.submit(prepare, step), steps, workers)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _in_order(submit: Callable[[int], Future[list[Batch]]], steps: range, ahead: int) -> Iterator[list[Batch]]:
    """Yield the results of all steps, `ahead` of them under way at any time."""
    left = iter(steps)
    waiting = deque(submit(step) for step in islice(left, ahead))
    while waiting:
        batches = waiting.popleft().result()
        waiting.extend(submit(step) for step in islice(left, 1))
        yield batches


class _Turns:
    """Lets threads pass one at a time, in the order of their numbers."""

    def __init__(self, first: int) -> None:
        self._next, self._changed = first, threading.Condition()

    @contextmanager
    def of(self, number: int) -> Iterator[None]:
        """Wait until all smaller numbers have passed; a number that fails has passed, too."""
        with self._changed:
            self._changed.wait_for(lambda: self._next == number)
        try:
            yield
        finally:
            with self._changed:
                self._next = number + 1
                self._changed.notify_all()
