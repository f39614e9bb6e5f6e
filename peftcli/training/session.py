"""A run in memory: everything that the loop, the evaluations and the checkpoints share. Built by `training.setup`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from peftcli.assembly.precision import Precision
from peftcli.assembly.run_reference import RunReference
from peftcli.data.prepared_data import PreparedData
from peftcli.data.rows.row_set import RowSet
from peftcli.deliverables.leaving_model import LeavingModel
from peftcli.distributed.processes import World
from peftcli.distributed.whole_tensors import optimizer_shares, put, whole_tree
from peftcli.inference.evaluator import Evaluation, Evaluator
from peftcli.models.anatomy import Anatomy
from peftcli.models.load.load_model import Loaded
from peftcli.protocol.attachment import Attachment
from peftcli.protocol.method import MethodInfo
from peftcli.recipe.load_recipe import LoadedRecipe
from peftcli.recipe.method_params import MethodParams
from peftcli.recipe.schema import Recipe
from peftcli.record.run_directory import RunDirectory
from peftcli.record.train_state import TrainState
from peftcli.stop_signals import StopRequest
from peftcli.tasks.task import Task
from peftcli.training.computing import Computing
from peftcli.training.optim.chosen_rate import ChosenRate
from peftcli.training.speed.compute_weights import ComputeWeights
from peftcli.training.step_batches import StepBatches
from peftcli.training.step_plan import StepPlan
from peftcli.training.watch.callbacks import Callbacks
from peftcli.training.watch.reporting import Reporter
from peftcli.training.watch.trackers import Trackers

if TYPE_CHECKING:
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Session:
    """One run. What moves is in the model's weights, the optimizer, Accelerate's loss scaler and `state`.

    Args:
        loaded: the recipe and where its values are written.
        base: the live model's identity, dtype and notes.
        validation: named validation sets that have rows.
        batches: makes the micro-batches of each step.
        computing: makes the context of a training forward pass.
        compute_weights: the frozen matrices in the dtype of training, if they have another one.
        leaving: the description of the model that the run will leave.
        learning_rate: the peak rate and where it is from.
        rate_factor: its share at the step with a given index, counted from 0.
        state: counts, best evaluation, and what was decided for the whole run.
        trackers, callbacks: of the recipe; none beside the main process.
        reference: what the directory of a new run keeps of the model before its first step; None where nothing.
    """

    loaded: LoadedRecipe
    world: World
    directory: RunDirectory
    reporter: Reporter
    tokenizer: PreTrainedTokenizerBase
    base: Loaded
    data: PreparedData
    info: MethodInfo
    anatomy: Anatomy
    attachment: Attachment
    task: Task
    validation: Mapping[str, RowSet]
    batches: StepBatches
    evaluator: Evaluator
    computing: Computing
    compute_weights: ComputeWeights
    plan: StepPlan
    leaving: LeavingModel
    learning_rate: ChosenRate
    rate_factor: Callable[[int], float]
    optimizer: AcceleratedOptimizer
    state: TrainState
    trackers: Trackers
    callbacks: Callbacks
    reference: RunReference | None = None

    @property
    def recipe(self) -> Recipe:
        """The resolved recipe."""
        return self.loaded.recipe

    @property
    def method(self) -> MethodParams:
        """The method's hyper-parameters, with what was decided from the training rows."""
        return self.state.method_of(self.recipe)

    @property
    def model(self) -> nn.Module:
        """The live model, parts attached."""
        return self.attachment.model

    @property
    def accelerator(self) -> Accelerator:
        """Accelerate's engine: autocast, backward passes, loss scaling, the optimizer's steps."""
        return self.computing.accelerator

    @property
    def precision(self) -> Precision:
        """The dtype of training's products, and why."""
        return self.computing.precision

    def evaluate(self, stop: StopRequest | None = None) -> Evaluation:
        """Return `eval_*` metrics over the validation sets, and generated samples.

        Args:
            stop: looked at between batches; None to evaluate to the end.

        Raises:
            EvaluationStopped: some process was asked to stop.
        """
        watch = self.world.watch

        def asked() -> bool:
            watch.begin(f"a batch of the evaluation after step {self.state.step}")
            return stop is not None and stop.requested

        try:
            with self.compute_weights.set_aside():
                return self.evaluator(self.validation, asked)
        finally:
            watch.end()

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        """Write a line of metrics.jsonl and hand it to the trackers."""
        if self.world.is_main:
            self.directory.metrics.append(line)
        self.trackers.log(line)

    def checkpoint_tree(self, processes: list[dict[str, Any]]) -> dict[str, Any]:
        """Return everything that a resumed run needs; every process must call this.

        Args:
            processes: the measuring window of each.
        """
        trained = {name: p.detach() for name, p in self.attachment.trainable_parameters().items()}
        tree = {
            "progress": {**self.state.as_dict(), "window": {}},
            "parameters": trained,
            "adapter": self.attachment.state_dict(),
            "method": self.attachment.training_state(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else {},
            "processes": processes,
        }
        return whole_tree(tree, keep=self.world.is_main) if self.world.strategy.sharded else tree

    def load_checkpoint_tree(self, tree: dict[str, Any]) -> None:
        """Put weights, optimizer and scaler back to where `checkpoint_tree` was taken.

        `state` is there already: the session of a run that goes on is built with it.
        """
        self.attachment.load_state_dict(tree["adapter"])
        self.attachment.load_training_state(tree["method"])
        with torch.no_grad():
            for name, parameter in self.attachment.trainable_parameters().items():
                put(parameter, tree["parameters"][name])
        ordered = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        self.optimizer.load_state_dict(optimizer_shares(tree["optimizer"], ordered))
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(tree["scaler"])
