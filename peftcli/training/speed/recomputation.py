"""Whether a step's activations fit into memory; where they do not, they are computed again instead of kept."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from peftcli.assembly.divide_base import bytes_when_divided, freed_by_dividing
from peftcli.data.rows.row_set import Row, StoredRows
from peftcli.data.rows.streaming import StreamedRows
from peftcli.distributed.devices import free_bytes
from peftcli.distributed.processes import World
from peftcli.errors import UserError
from peftcli.models.anatomy import Anatomy
from peftcli.models.few_blocks import FirstBlocks
from peftcli.protocol.attachment import Attachment
from peftcli.protocol.method import MethodInfo
from peftcli.recipe.schema import TrainingSpec
from peftcli.tasks.task import Task
from peftcli.training.computing import Computing
from peftcli.training.speed.activation_checkpointing import enable_checkpointing
from peftcli.training.speed.activation_memory import activation_cost
from peftcli.training.speed.fast_paths import FastPaths
from peftcli.training.step_batches import StepBatches

BESIDE = 1.25
"""Bytes needed for each that is kept: gradients of activations, and what a layer needs while it runs."""
STATES = 3
"""Values for each trainable one: its gradient, and what AdamW remembers."""
SHARE = 0.9
"""Of the free memory that a step may fill."""


@dataclass(frozen=True)
class Need:
    """What the largest micro-batch of a run needs beside what is loaded, and what is free.

    Args:
        rows: rows of the micro-batch; a joined one may hold a part of another row.
        length: tokens of each.
        target: tokens of each target, where the rows have targets beside what is read.
        activations: bytes kept for the backward pass.
        states: bytes of gradients and optimizer.
        free: bytes.
    """

    rows: float
    length: int
    activations: float
    states: int
    free: int
    target: int | None = None

    @property
    def fits(self) -> bool:
        """Whether activations can be kept."""
        return self.activations * BESIDE + self.states <= self.free * SHARE

    def __str__(self) -> str:
        rows = "a row" if self.rows == 1 else f"{self.rows:.3g} rows"
        targets = "" if self.target is None else f" and as many targets of {self.target:,}"
        activations, free = self.activations / 2**30, self.free / 2**30
        kept = f"{activations:.3g} GiB of activations, {free:.3g} GiB are free"
        return f"{rows} of {self.length:,} tokens{targets} would keep {kept}"


@dataclass(frozen=True)
class Recomputation:
    """What was decided: whether activations are computed again in the backward pass, and what to tell of it."""

    on: bool
    note: str | None = None


def set_up_recomputation(
    model: nn.Module,
    spec: TrainingSpec,
    world: World,
    paths: FastPaths,
    recorded: bool | None,
    measure: Callable[[], Need | None],
) -> Recomputation:
    """Switch gradient checkpointing on if the recipe says so, or leaves it open and a step would not fit without.

    Args:
        model: its blocks are not compiled yet.
        paths: of the forward pass, and so of its recomputation.
        recorded: what an earlier part of this run did: a resumed run goes on the same way.
        measure: returns what a step needs, None where nothing tells what is free; called only if that decides.
    """
    asked, need = spec.gradient_checkpointing, None
    wanted = recorded if asked == "auto" else asked
    if wanted is None:
        need = measure()
        wanted = world.any(need is not None and not need.fits)
    if not wanted:
        return Recomputation(False)
    try:
        enable_checkpointing(model, nullcontext if spec.torch_compile else paths.again)
    except UserError as error:
        if asked != "auto":
            raise
        reason = error.problems[0].message
        remedy = "lower training.per_device_train_batch_size"
        return Recomputation(False, f"memory may run out: {need}, and {reason}; {remedy}")
    return Recomputation(True, f"gradient checkpointing is on: {need}" if need is not None else None)


def need_of(
    batches: StepBatches,
    attachment: Attachment,
    info: MethodInfo,
    task: Task,
    computing: Computing,
    anatomy: Anatomy,
) -> Need | None:
    """Return what the largest step of a run needs, None where nothing tells what is free.

    A base that will be divided among the processes counts as it will be held then.
    """
    model, world = attachment.model, batches.world
    available = free_bytes(world.device, world.size)
    if available is None:
        return None
    free = available + freed_by_dividing(anatomy, model, world)
    states = STATES * bytes_when_divided(attachment.trainable_parameters(), info, world)

    def need(row: Row, length: int, target: int | None) -> Need:
        blocks = FirstBlocks(model, anatomy.layers)
        cost = activation_cost(model, task, batches.collator, row, computing, blocks)
        count, _ = largest_micro_batch(batches, length)
        return Need(count, length, cost.of(count, length), states, free, target)

    return max((need(*one) for one in _largest_rows(batches)), key=lambda found: found.activations)


def _largest_rows(batches: StepBatches) -> list[tuple[Row, int, int | None]]:
    """Return (row, tokens, tokens of its target) of the rows whose micro-batches can keep most.

    A decoder reads the target. The longest input and the longest target can meet in a micro-batch; more rows than that
    one has stand in one of shorter inputs, where tokens of inputs bound it, and their targets can be as long.
    """
    rows, lengths = batches.rows, batches.lengths
    place, most = int(np.argmax(lengths)), int(lengths.max())  # of a stream it is the limit
    if batches.collator.task.info.rows != "pairs" or not isinstance(rows, StoredRows | StreamedRows):
        return [(rows[place], most, None)]
    targets = rows.target_lengths
    longest, at = int(targets.max()), int(np.argmax(targets))
    found: list[tuple[Row, int, int | None]] = [(_with_target(rows[place], most, longest), most, longest)]
    if batches.max_tokens is not None and lengths[at] < most:
        found.append((rows[at], int(lengths[at]), longest))
    return found


def _with_target(row: Row, length: int, target: int) -> Row:
    """Return a row that stands for one of `length` tokens with a target of `target` tokens: of the same proportion."""
    tokens = max(1, round(target * len(row.input_ids) / length))
    return replace(row, labels=np.resize(np.asarray(row.labels), tokens))


def largest_micro_batch(batches: StepBatches, longest: int) -> tuple[float, int]:
    """Return (rows, tokens of each) of the micro-batch that keeps most, for a set with this longest row."""
    size, limit = batches.spec.per_device_train_batch_size, batches.max_tokens
    fitting = size if limit is None else max(1.0, limit / longest)
    if not batches.collator.joins_rows:
        fitting = int(fitting)
    return min(fitting, size), longest
