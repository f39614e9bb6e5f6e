"""A run in memory: everything that the loop, the evaluations and the checkpoints share. Built by `training.setup`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from peftcli.assembly.precision import Precision
from peftcli.data.rows.collation import Collator
from peftcli.distributed.processes import World
from peftcli.inference.evaluator import Evaluator
from peftcli.layers.cpu.document_attention import DocumentAttention
from peftcli.models.anatomy import Anatomy
from peftcli.protocol.attachment import Attachment
from peftcli.protocol.method import MethodInfo
from peftcli.recipe.load_recipe import LoadedRecipe
from peftcli.recipe.schema import Recipe
from peftcli.record.checkpoints import TrainState
from peftcli.record.run_directory import RunDirectory
from peftcli.tasks.task import Batch, Task
from peftcli.training.optim.learning_rate import learning_rate_factor
from peftcli.training.speed.compute_weights import ComputeWeights
from peftcli.training.speed.fast_paths import FastPaths
from peftcli.training.step_plan import Plan, every, micro_batches, token_limit
from peftcli.training.watch.reporting import Reporter
from peftcli.training.watch.trackers import Trackers


@dataclass
class Session:
    """One run.

    Args:
        loaded: the recipe and where its values are written.
        base: `models.load.load_model.Loaded`: the live model's identity, dtype and notes.
        data: `data.PreparedData`.
        validation: named validation sets that have rows.
        learning_rate: the peak rate.
        recomputes: whether activations are computed again in the backward pass (gradient checkpointing).
        state: what moves; replaced when a checkpoint is read.
        trackers: of the recipe, on the main process.
        after_step: called after every step (the profiler).
    """

    loaded: LoadedRecipe
    world: World
    directory: RunDirectory
    reporter: Reporter
    tokenizer: Any
    base: Any
    data: Any
    info: MethodInfo
    anatomy: Anatomy
    attachment: Attachment
    task: Task
    collator: Collator
    evaluator: Evaluator
    precision: Precision
    plan: Plan
    learning_rate: float
    optimizer: Optimizer
    scaler: torch.amp.GradScaler
    fast_paths: FastPaths
    validation: Mapping[str, Any]
    recomputes: bool = False
    state: TrainState = field(default_factory=TrainState)
    trackers: Trackers | None = None
    after_step: Callable[[], None] | None = None

    @property
    def recipe(self) -> Recipe:
        """The resolved recipe."""
        return self.loaded.recipe

    @property
    def model(self) -> nn.Module:
        """The live model, parts attached."""
        return self.attachment.model

    @property
    def eval_interval(self) -> int | None:
        """Steps between evaluations, or None."""
        spec = self.recipe.training
        if not self.validation:
            return None
        strategy = spec.eval_strategy
        if strategy == "auto":
            strategy = "steps" if spec.eval_steps else "epoch"
        return every(strategy, spec.eval_steps, self.plan, default=100)

    @property
    def save_interval(self) -> int | None:
        """Steps between checkpoints, or None."""
        spec = self.recipe.training
        if spec.save_strategy != "auto":
            return every(spec.save_strategy, spec.save_steps, self.plan, default=100)
        return spec.save_steps or self.eval_interval or self.plan.steps_per_epoch

    def saves_at(self, step: int) -> bool:
        """Whether a checkpoint is due after `step`: at the interval, and after the last one."""
        interval = self.save_interval
        return interval is not None and (step % interval == 0 or step == self.plan.total_steps)

    @cached_property
    def compute_weights(self) -> ComputeWeights:
        """The frozen matrices in the dtype of training, if they have another one."""
        spec, compute = self.recipe.training, self.precision.compute
        casts = compute != self.precision.weights and not (self.recomputes or spec.torch_compile)
        return ComputeWeights(self.model, compute if casts and spec.fast_paths.compute_weights else None)

    @contextmanager
    def computing(self, batch: Batch) -> Iterator[None]:
        """Be in the context of a training forward pass: its dtype, and the faster paths that the recipe leaves on."""
        documents = batch.documents() if self.fast_paths.by_document else ()
        attention = DocumentAttention(documents) if len(documents) > 1 else None
        with self.precision.training(self.world.device), self.fast_paths(attention):
            yield

    def step_batches(self, step: int) -> list[Batch]:
        """Return this process's micro-batches of the step with this index, counted from 0, on the CPU."""
        epoch, index = self.plan.position(step)
        spec = self.recipe.training
        limit = token_limit(spec, self.world.device.type, self.anatomy.hidden_size)
        rows = self.collator.epoch_rows(self.data.train, epoch, self.plan.step_rows)[index]
        shares = micro_batches(
            rows,
            self.data.train.lengths,
            spec,
            rank=self.world.rank,
            size=self.world.size,
            max_tokens=limit,
            joined=self.collator.joins_rows,
        )
        return [self.collator.micro_batch(self.data.train, share) for share in shares]

    def set_learning_rate(self, step: int) -> None:
        """Set every group's learning rate for the step with this index, counted from 0."""
        factor = learning_rate_factor(self.recipe.training, self.plan.total_steps, self.learning_rate)(step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor

    def evaluate(self) -> dict[str, Any]:
        """Return `eval_*` metrics over the validation sets."""
        with self.compute_weights.set_aside():
            return self.evaluator(self.validation)

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        """Write a line of metrics.jsonl and hand it to the trackers."""
        if self.world.is_main:
            self.directory.append_metrics(line)
        if self.trackers is not None:
            self.trackers.log(line)

    def checkpoint_tree(self, processes: list[dict[str, Any]]) -> dict[str, Any]:
        """Return everything that going on needs.

        Args:
            processes: random states and measuring window of each process.
        """
        trained = {name: p.detach() for name, p in self.attachment.trainable_parameters().items()}
        return {
            "progress": {**self.state.as_dict(), "window": {}},
            "parameters": trained,
            "adapter": self.attachment.state_dict(),
            "method": self.attachment.training_state(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "processes": processes,
        }

    def load_checkpoint_tree(self, tree: dict[str, Any]) -> None:
        """Put the run back to where `checkpoint_tree` was taken."""
        self.state = TrainState(**tree["progress"])
        self.attachment.load_state_dict(tree["adapter"])
        self.attachment.load_training_state(tree["method"])
        with torch.no_grad():
            for name, parameter in self.attachment.trainable_parameters().items():
                parameter.copy_(tree["parameters"][name])
        self.optimizer.load_state_dict(tree["optimizer"])
        if self.precision.scaled:
            self.scaler.load_state_dict(tree["scaler"])
