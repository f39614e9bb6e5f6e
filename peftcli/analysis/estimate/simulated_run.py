"""The steps of a run on tensors without values: the code that trains, with its memory counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch

from peftcli.analysis.estimate.c_heap import Heap
from peftcli.analysis.estimate.fake_base import PackedLinear, fake_base, tensors_of
from peftcli.analysis.estimate.live_tensors import NOT_HELD, LiveTensors
from peftcli.assembly.attach_method import attach_method
from peftcli.assembly.precision import Precision
from peftcli.data.rows.collation import Collator
from peftcli.data.rows.row_set import Row, RowSet
from peftcli.data.store.labels import LabelSpec
from peftcli.distributed.gradients import clip_gradients
from peftcli.distributed.processes import World
from peftcli.layers.added_modules import is_added
from peftcli.protocol.attachment import Attachment
from peftcli.recipe.schema import ModelSpec, Recipe
from peftcli.tasks.task import Task
from peftcli.training.computing import Computing
from peftcli.training.optim.neftune import add_neftune
from peftcli.training.optim.optimizers import make_optimizer
from peftcli.training.optim.parameter_groups import parameter_groups
from peftcli.training.speed.activation_checkpointing import enable_checkpointing
from peftcli.training.speed.compute_weights import ComputeWeights
from peftcli.training.speed.fast_paths import AllowedPaths, FastPaths
from peftcli.training.speed.last_block import hooked_last_block
from peftcli.training.step_batches import Share, StepBatches
from peftcli.training.step_plan import make_plan

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


HELD = 1.9
"""Bytes that glibc's heap holds for each that `c_heap` counts: small blocks lie between large ones, and kernels take
some for themselves. Fitted to a single run of a llama of 160 MB; benchmarks/memory/estimate_error.py shows how far it
carries."""


@dataclass(frozen=True)
class Work:
    """What a run computes that takes most memory.

    Args:
        rows: to train on.
        micro_batches: numbers of the rows of a step's largest micro-batches, the largest one first.
        evaluate: rows of the largest batch of an evaluation; empty without one.
    """

    rows: RowSet
    micro_batches: Sequence[Sequence[int]]
    evaluate: Sequence[Row] = ()


@dataclass(frozen=True)
class Setting:
    """What a run is made of, apart from its rows.

    Args:
        model: the recipe's model block, with the 4 bits that the method implies.
        config: makes the model's config anew.
        by_document: whether rows are joined without padding; `last_block`: whether a classifier's last block is cut.
        recomputes: whether activations are computed again in the backward pass.
        mapped: whether the weights stay in their files' pages, which no allocator holds.
        heap: of the process; None on a device whose allocator reports what lives.
    """

    recipe: Recipe
    model: ModelSpec
    config: Callable[[], PretrainedConfig]
    tokenizer: PreTrainedTokenizerBase
    task: Task
    labels: LabelSpec | None
    world: World
    precision: Precision
    by_document: bool
    last_block: bool
    recomputes: bool
    mapped: bool = False
    heap: Heap | None = None


@dataclass
class Counted:
    """Bytes of a simulated run.

    Args:
        peak: at the fullest moment, without libraries.
        parts: the bytes by part then.
        evaluation: the most that an evaluation takes.
        kept: what the forward pass of the largest micro-batch keeps for the backward pass.
        largest_block, outside: bytes of the base's largest block, and of what is in no block.
        base: of the whole base.
        trainable: numbers that are trained.
        heap: bytes of the C library's heap at its largest, weights that are mapped from files left out; `heap_live` of
            those live at the fullest moment.
    """

    peak: int = 0
    parts: Counter[str] = field(default_factory=Counter)
    evaluation: int = 0
    kept: int = 0
    base: int = 0
    largest_block: int = 0
    outside: int = 0
    trainable: int = 0
    heap: int = 0
    heap_live: int = 0

    @property
    def waste(self) -> int:
        """Bytes that the C library's heap holds beyond what lives at the fullest moment."""
        return max(0, round(HELD * self.heap) - self.heap_live) if self.heap else 0


def simulate(setting: Setting, work: Work) -> Counted:
    """Run an evaluation and two steps without values, and count.

    Raises:
        UserError: the method does not fit the model.
    """
    counted = Counted()
    tracker = LiveTensors()
    with tracker.running():
        run = _built(setting, work, tracker, counted)
        _evaluate(setting, run, work, tracker, counted)
        _train(setting, run, work, tracker, counted)
        _evaluate(setting, run, work, tracker, counted)
        if setting.heap is not None:
            counted.heap = setting.heap.play(tracker.events)
            counted.heap_live = counted.peak - (counted.base if setting.mapped else 0)
    return counted


@dataclass(frozen=True)
class _Run:
    attachment: Attachment
    computing: Computing
    batches: StepBatches
    copies: ComputeWeights
    optimizer: Any


def _built(setting: Setting, work: Work, tracker: LiveTensors, counted: Counted) -> _Run:
    """Return the model with its method, and what trains it."""
    recipe, spec, world = setting.recipe, setting.recipe.training, setting.world
    with tracker.part("weights"):
        base = fake_base(setting.model, setting.config(), recipe.task, setting.labels, world.device)
    plain = recipe.model_copy(update={"method": recipe.method.model_copy(update={"init_from": None})})
    attached = attach_method(plain, base, setting.tokenizer, setting.labels, world)
    attachment, model = attached.attachment, base.model
    trained = attachment.trainable_parameters().values()
    named = list(chain(model.named_parameters(), model.named_buffers()))
    tracker.claim((tensor for name, tensor in named if is_added(name)), "adapter")
    tracker.claim((tensor for name, tensor in named if not is_added(name)), "weights")
    tracker.claim(attachment.shared.values(), "adapter")
    tracker.claim((m.weight for m in model.modules() if isinstance(m, PackedLinear)), NOT_HELD)
    tracker.begin_events({"weights", NOT_HELD} if setting.mapped else {NOT_HELD})
    counted.trainable = sum(parameter.numel() for parameter in trained)
    _measure_base(model, attached.anatomy.layers, counted)
    if setting.task.info.generates:
        tracker.vocabulary = int(model.config.get_text_config().vocab_size)
    setting.task.bind(model, attachment.prepare_inputs)
    allowed = AllowedPaths.of(recipe, world.device, model)
    cut = hooked_last_block(model, attached.anatomy) if setting.last_block else None
    paths = FastPaths(allowed, by_document=setting.by_document, last_block=cut)
    world.compute_in(setting.precision.mixed)
    computing = Computing(setting.precision, paths, world.accelerator)
    if setting.recomputes:
        enable_checkpointing(model, paths.again)
    if spec.neftune_noise_alpha:
        add_neftune(model.get_submodule(attached.anatomy.embeddings), spec.neftune_noise_alpha)
    joins = setting.by_document and not (recipe.data is not None and recipe.data.packing)
    casts = setting.precision.compute != setting.precision.weights and not setting.recomputes
    copies = ComputeWeights(model, setting.precision.compute if casts and spec.fast_paths.compute_weights else None)
    groups = parameter_groups(attachment.trainable_parameters(), spec, 1e-3, head=attachment.head)
    optimizer = make_optimizer(spec, groups, 1e-3, world.device)
    collator = Collator(setting.tokenizer, setting.task, joins_rows=joins)
    plan = make_plan(spec, len(work.rows), world.size)
    batches = StepBatches(recipe, work.rows, collator, plan, world, None)
    return _Run(attachment, computing, batches, copies, optimizer)


def _measure_base(model: Any, layers: Any, counted: Counted) -> None:
    """Note the sizes that a division among processes depends on."""
    counted.base = sum(tensor.nbytes for tensor in _held(model))
    blocks = [
        sum(tensor.nbytes for tensor in _held(model.get_submodule(path))) for paths in layers.values() for path in paths
    ]
    counted.largest_block, counted.outside = max(blocks, default=0), counted.base - sum(blocks)


def _held(module: Any) -> list[torch.Tensor]:
    packed = {id(each.weight) for each in module.modules() if isinstance(each, PackedLinear)}
    return [tensor for tensor in tensors_of(module) if id(tensor) not in packed]


def _evaluate(setting: Setting, run: _Run, work: Work, tracker: LiveTensors, counted: Counted) -> None:
    if not work.evaluate:
        return
    model, device = run.attachment.model, setting.world.device
    model.eval()
    with ExitStack() as stack:
        with tracker.part("weights"):
            stack.enter_context(run.copies.in_place())
        tracker.restart()
        before = tracker.peak
        with run.copies.set_aside(), torch.no_grad(), setting.precision.inference(device):
            setting.task.evaluate(model, run.batches.collator.batch(work.evaluate).to(device))
        counted.evaluation = tracker.peak - before
    _note_peak(tracker, counted)


def _train(setting: Setting, run: _Run, work: Work, tracker: LiveTensors, counted: Counted) -> None:
    """Take a step, and compute the passes of a second one, which has the optimizer's state beside it."""
    model, spec, device = run.attachment.model, setting.recipe.training, setting.world.device
    parameters = list(run.attachment.trainable_parameters().values())
    accelerator = setting.world.accelerator
    shares = [Share(0, list(numbers), [work.rows[n] for n in numbers]) for numbers in work.micro_batches]
    model.train()
    with ExitStack() as stack:
        with tracker.part("weights"):
            stack.enter_context(run.copies.in_place())
        tracker.restart()
        for step in (1, 2):
            for batch in run.batches.collate(shares if step == 1 else shares[:1]):
                before = tracker.total
                with run.computing(batch):
                    terms = setting.task.loss(model, batch.to(device))
                counted.kept = max(counted.kept, tracker.total - before)
                accelerator.backward(terms.loss_sum / 1.0)
                del terms
                tracker.claim((parameter.grad for parameter in parameters), "gradients")
            extra = run.attachment.extra_loss()
            if extra is not None:
                accelerator.backward(extra)
            del extra
            clip_gradients(accelerator, parameters, spec.max_grad_norm or float("inf"))
            with tracker.part("optimizer"):
                run.optimizer.step()
            run.optimizer.zero_grad()
    _note_peak(tracker, counted)


def _note_peak(tracker: LiveTensors, counted: Counted) -> None:
    if tracker.peak > counted.peak:
        counted.peak, counted.parts = tracker.peak, tracker.at_peak
