"""What a run will do: how many steps, which of them warm up, when it evaluates and saves, the size of micro-batches."""

from __future__ import annotations

import math
from dataclasses import dataclass

from peftcli.recipe.schema import TrainingSpec
from peftcli.training.optim.learning_rate import warmup_steps

CPU_MICRO_BATCH_TOKENS = 512
CPU_MICRO_BATCH_VALUES = 768 * 512
"""Padded tokens at once on a CPU, and hidden values in narrow models: products reach full speed, the activations of a
layer stay in its caches, and Python's share is small."""


@dataclass(frozen=True)
class StepPlan:
    """The steps of a run.

    Args:
        rows: training rows.
        step_rows: rows of one optimizer step: device batch x accumulation x processes.
        steps_per_epoch: the last step of an epoch may be short.
        total_steps: optimizer steps.
        warmup: of which this many warm up.
        eval_interval, save_interval: steps between two evaluations, and between two checkpoints; None for never.
    """

    rows: int
    step_rows: int
    steps_per_epoch: int
    total_steps: int
    warmup: int
    eval_interval: int | None
    save_interval: int | None

    @property
    def epochs(self) -> float:
        """Passes over the rows."""
        return self.total_steps / self.steps_per_epoch

    def position(self, step: int) -> tuple[int, int]:
        """Return (epoch, step within it) of the step with this index, counted from 0."""
        return divmod(step, self.steps_per_epoch)

    def saves_at(self, step: int) -> bool:
        """Whether a checkpoint is due after `step`: at the interval, and after the last one."""
        interval = self.save_interval
        return interval is not None and (step % interval == 0 or step == self.total_steps)


def make_plan(spec: TrainingSpec, rows: int, processes: int, *, evaluates: bool = True) -> StepPlan:
    """Return the plan for a number of training rows.

    Args:
        evaluates: whether there are validation rows.
    """
    step_rows = spec.per_device_train_batch_size * spec.gradient_accumulation_steps * processes
    per_epoch = max(1, math.ceil(rows / step_rows))
    total = spec.max_steps or max(1, math.ceil(spec.num_train_epochs * per_epoch - 1e-9))
    evaluations = _evaluation_interval(spec, per_epoch) if evaluates else None
    saves = _save_interval(spec, per_epoch, evaluations)
    return StepPlan(rows, step_rows, per_epoch, total, warmup_steps(spec, total), evaluations, saves)


def _evaluation_interval(spec: TrainingSpec, epoch: int) -> int | None:
    strategy = spec.eval_strategy
    if strategy == "auto":
        strategy = "steps" if spec.eval_steps else "epoch"
    return _interval(strategy, spec.eval_steps, epoch)


def _save_interval(spec: TrainingSpec, epoch: int, evaluations: int | None) -> int | None:
    """Return the steps between two checkpoints: those between two evaluations, if the recipe says nothing else."""
    if spec.save_strategy != "auto":
        return _interval(spec.save_strategy, spec.save_steps, epoch)
    return spec.save_steps or evaluations or epoch


def _interval(strategy: str, steps: int | None, epoch: int) -> int | None:
    """Return the steps between two events by a strategy: no, steps (100 by default), or epoch (of so many steps)."""
    if strategy == "no":
        return None
    return epoch if strategy == "epoch" else steps or 100


def cpu_micro_batch_tokens(hidden_size: int) -> int:
    """Return how many tokens of a model to compute at once on a CPU."""
    return max(CPU_MICRO_BATCH_TOKENS, CPU_MICRO_BATCH_VALUES // hidden_size)


def token_limit(spec: TrainingSpec, device_type: str, hidden_size: int) -> int | None:
    """Return the bound on a micro-batch's tokens: the recipe's, or a CPU's own."""
    if spec.max_tokens_per_micro_batch is not None or device_type != "cpu":
        return spec.max_tokens_per_micro_batch
    return cpu_micro_batch_tokens(hidden_size)


def plan_notes(plan: StepPlan, spec: TrainingSpec) -> list[str]:
    """Return which of a schedule's settings cannot act in so few steps; nothing where all can."""
    notes, total = [], plan.total_steps
    if plan.warmup >= total:
        key = f"warmup_steps {spec.warmup_steps}" if spec.warmup_steps else f"warmup_ratio {spec.warmup_ratio:g}"
        notes.append(
            f"training.{key}: all {total} steps of this run are warm-up, so the learning rate rises up to the last one"
        )
    interval, patience = plan.eval_interval, spec.early_stopping_patience
    if interval is None:
        return notes
    if spec.eval_steps and interval > total:
        notes.append(f"training.eval_steps {interval}: this run has {total} steps, so it is evaluated at its end only")
    evaluations = math.ceil(total / interval)
    if patience is not None and evaluations <= patience + 1:
        count = f"{evaluations} evaluation{'s' * (evaluations > 1)}"
        notes.append(f"training.early_stopping_patience {patience} cannot shorten this run: it has {count}")
    return notes
