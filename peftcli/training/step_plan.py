"""What a run will do: how many steps, which rows in which step, how a step is split into micro-batches.

The rows of a step do not depend on how the step is computed: the same ones in the same step, whether as one batch, as
accumulated micro-batches, or on several processes. Only dropout then differs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from peftcli.data.rows.packing import best_fit
from peftcli.recipe.schema import TrainingSpec
from peftcli.training.optim.learning_rate import warmup_steps

CPU_MICRO_BATCH_TOKENS = 512
CPU_MICRO_BATCH_VALUES = 768 * 512
"""Padded tokens at once on a CPU, and hidden values in narrow models: products reach full speed, the activations of a
layer stay in its caches, and Python's share is small."""


@dataclass(frozen=True)
class Plan:
    """The steps of a run.

    Args:
        rows: training rows.
        step_rows: rows of one optimizer step: device batch x accumulation x processes.
        steps_per_epoch: the last step of an epoch may be short.
        total_steps: optimizer steps.
        warmup: of which this many warm up.
    """

    rows: int
    step_rows: int
    steps_per_epoch: int
    total_steps: int
    warmup: int

    @property
    def epochs(self) -> float:
        """Passes over the rows."""
        return self.total_steps / self.steps_per_epoch

    def position(self, step: int) -> tuple[int, int]:
        """Return (epoch, batch within it) of the step with this index, counted from 0."""
        return divmod(step, self.steps_per_epoch)


def make_plan(spec: TrainingSpec, rows: int, processes: int) -> Plan:
    """Return the plan for a number of training rows."""
    step_rows = spec.per_device_train_batch_size * spec.gradient_accumulation_steps * processes
    per_epoch = max(1, math.ceil(rows / step_rows))
    total = spec.max_steps or max(1, math.ceil(spec.num_train_epochs * per_epoch - 1e-9))
    return Plan(rows, step_rows, per_epoch, total, warmup_steps(spec, total))


def cpu_micro_batch_tokens(hidden_size: int) -> int:
    """Return how many tokens of a model to compute at once on a CPU."""
    return max(CPU_MICRO_BATCH_TOKENS, CPU_MICRO_BATCH_VALUES // hidden_size)


def token_limit(spec: TrainingSpec, device_type: str, hidden_size: int) -> int | None:
    """Return the bound on a micro-batch's tokens: the recipe's, or a CPU's own."""
    if spec.max_tokens_per_micro_batch is not None or device_type != "cpu":
        return spec.max_tokens_per_micro_batch
    return cpu_micro_batch_tokens(hidden_size)


def every(strategy: str, steps: int | None, plan: Plan, *, default: int) -> int | None:
    """Return the steps between two evaluations (or checkpoints), or None for never.

    Args:
        strategy: no, steps or epoch.
        default: of `steps` when none are given.
    """
    if strategy == "no":
        return None
    return plan.steps_per_epoch if strategy == "epoch" else steps or default


def micro_batches(
    rows: Sequence[int],
    lengths: np.ndarray[Any, Any],
    spec: TrainingSpec,
    *,
    rank: int,
    size: int,
    max_tokens: int | None,
    joined: bool = False,
) -> list[list[int]]:
    """Return this process's share of a step's rows as micro-batches.

    Padded ones hold rows of similar length, longest first; joined ones as many rows as fit, of any length.

    Args:
        rows: the step's row numbers.
        lengths: tokens of every row of the set.
        max_tokens: bound on a micro-batch's tokens, padding included; a single longer row stands alone.
        joined: whether a micro-batch's rows are put behind each other, without padding.
    """
    ordered = sorted(rows, key=lambda row: (-int(lengths[row]), row))[rank::size]
    if joined and ordered and max_tokens is not None:
        own = np.array([lengths[row] for row in ordered])
        order, offsets = best_fit(own, max(max_tokens, int(own.max())))
        return [[ordered[i] for i in order[start:end]] for start, end in pairwise(offsets)]
    return split_by_tokens(ordered, lengths, spec.per_device_train_batch_size, max_tokens)


def split_by_tokens(
    ordered: Sequence[int], lengths: np.ndarray[Any, Any], batch_size: int, max_tokens: int | None
) -> list[list[int]]:
    """Cut rows, longest first, into batches of at most `batch_size` rows and `max_tokens` padded tokens."""
    batches: list[list[int]] = []
    for row in ordered:
        current = batches[-1] if batches else []
        longest = int(lengths[current[0]]) if current else 0
        full = len(current) >= batch_size or (max_tokens is not None and (len(current) + 1) * longest > max_tokens)
        if not current or full:
            batches.append([row])
        else:
            current.append(row)
    return batches
