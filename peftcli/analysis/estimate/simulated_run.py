"""The steps of a run on tensors without values: the code that trains, with its memory counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch

from peftcli.analysis.estimate.counted_bytes import Counted
from peftcli.analysis.estimate.fake_base import PackedLinear, give_memory, meta_base, tensors_of
from peftcli.analysis.estimate.fewer_blocks import Repeats, repeats, shorten
from peftcli.analysis.estimate.heap_replay import GAPS, heap_bytes
from peftcli.analysis.estimate.live_tensors import NOT_HELD, LiveTensors
from peftcli.assembly.precision import Precision
from peftcli.assembly.rows_to_train import rows_to_train
from peftcli.data.rows.collation import Collator
from peftcli.data.rows.row_set import Row, RowSet
from peftcli.data.store.labels import LabelSpec
from peftcli.distributed.gradients import clip_gradients
from peftcli.distributed.processes import World
from peftcli.layers.added_modules import is_added
from peftcli.models.anatomy import Anatomy
from peftcli.models.last_block import hooked_last_block
from peftcli.models.load.tokenizers import fit_to_tokenizer
from peftcli.models.read_anatomy import read_anatomy
from peftcli.protocol.apply_method import apply_method
from peftcli.protocol.attachment import Attachment
from peftcli.recipe.schema import ModelSpec, Recipe
from peftcli.tasks.task import Batch, LossTerms, Task
from peftcli.training.computing import Computing
from peftcli.training.optim.neftune import add_neftune
from peftcli.training.optim.optimizers import make_optimizer
from peftcli.training.optim.parameter_groups import parameter_groups
from peftcli.training.speed.activation_checkpointing import enable_checkpointing
from peftcli.training.speed.compute_weights import ComputeWeights
from peftcli.training.speed.fast_paths import AllowedPaths, FastPaths
from peftcli.training.start.frozen_start import FrozenStart
from peftcli.training.step_batches import Share, StepBatches
from peftcli.training.step_plan import make_plan

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Work:
    """What a run computes that takes most memory.

    Args:
        rows: to train on.
        micro_batches: numbers of the rows of a step's largest micro-batches, the largest one first.
        evaluate: rows of the largest batch of an evaluation; empty without one.
        ahead: rows of the largest micro-batch that is looked at before a step's losses; empty where none is.
        evaluate_ahead: those of the largest batch that is looked at before an evaluation's.
        shapes: how many shapes the run's micro-batches have.
    """

    rows: RowSet
    micro_batches: Sequence[Sequence[int]]
    evaluate: Sequence[Row] = ()
    ahead: Sequence[Row] = ()
    evaluate_ahead: Sequence[Row] = ()
    shapes: int = 1


@dataclass(frozen=True)
class Setting:
    """What a run is made of, apart from its rows.

    Args:
        model: the recipe's model block, with the 4 bits that the method implies.
        config: makes the model's config anew.
        by_document: whether attention is computed document by document, and rows that are not packed are joined without
            padding; `shares_prompts`: whether the prompt of two answers is then computed once; `last_block`: whether a
            classifier's last block is cut.
        recomputes: whether activations are computed again in the backward pass.
        mapped: whether the weights stay in their files' pages, which no allocator holds.
        heap_keeps: whether the C library's heap keeps what is freed; None on a device that has its own allocator.
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
    shares_prompts: bool
    last_block: bool
    recomputes: bool
    mapped: bool = False
    heap_keeps: bool | None = None


_Counting = Callable[[Setting, Attachment, Anatomy, Work], Counted]


class WholeModel:
    """The recipe's model with its method on the meta device, built once for all that is asked of one estimate.

    Args:
        setting: of the estimate.

    Raises:
        UserError: the method does not fit the model.
    """

    def __init__(self, setting: Setting) -> None:
        attachment, anatomy = _attached(setting, {})
        self._sizes, self._cuts = _sizes(attachment, anatomy), repeats(attachment.model, anatomy)
        self._built: tuple[Attachment, Anatomy] | None = (attachment, anatomy)

    def simulate(self, setting: Setting, work: Work) -> Counted:
        """Run two steps and an evaluation without values, and count; of a deep model that of shorter ones.

        Args:
            setting: the same but for `recomputes`.
        """
        return self._counted(setting, work, _count)

    def can_be_kept(self, setting: Setting, work: Work, fits: Callable[[Counted], bool]) -> bool:
        """Return whether what the forward pass of the largest micro-batch keeps fits; no more than that is run.

        Args:
            fits: decides by the sizes `base`, `trainable` and `kept`; asked before anything is run, too, with 0 kept.
        """
        return fits(self._sizes) and fits(self._counted(setting, work, _count_forward))

    def _counted(self, setting: Setting, work: Work, count: _Counting) -> Counted:
        if self._cuts:
            counted = _from_shorter(setting, work, self._cuts, count)
            if counted is not None and all(counted.size(size) == self._sizes.size(size) for size in _OF_THE_MODEL):
                return counted
        built, self._built = self._built or _attached(setting, {}), None  # a pass gives it memory
        return count(setting, *built, work)


_OF_THE_MODEL = ("base", "trainable")


def _from_shorter(setting: Setting, work: Work, cuts: Mapping[str, Repeats], count: _Counting) -> Counted | None:
    """Return what short models say of the whole one; None where the model's code or the method has no such models."""
    short = {stack: cut.short for stack, cut in cuts.items()}
    alike = replace(setting, heap_keeps=None)  # the heap of the longer ones is not asked for
    try:
        base = count(setting, *_attached(setting, short), work)
        longer = {
            stack: count(alike, *_attached(setting, {**short, stack: cut.short + cut.period}), work)
            for stack, cut in cuts.items()
        }
    except Exception:  # whatever a family's code raises that counts its blocks by the config; then the whole one is run
        return None
    whole = base.with_more(longer, {stack: cut.more for stack, cut in cuts.items()})
    if base.size("heap"):
        whole.set_size("heap", _grown_heap(base, whole, setting.mapped))
    return whole


def _grown_heap(short: Counted, whole: Counted, mapped: bool) -> int:
    """Return the heap of a whole model: that of a short one, what the whole one holds more, and gaps in what passes.

    A straight line through two replays would multiply what chance decides in each.

    Args:
        mapped: whether the base's weights lie elsewhere.
    """
    more = Counter(whole.parts)
    more.subtract(short.parts)
    passing = sum(more[part] for part in ("gradients", "activations", "logits"))
    elsewhere = whole.own_base - short.own_base if mapped else 0
    return short.size("heap") + sum(more.values()) - elsewhere + round(GAPS * max(0, passing))


def _count(setting: Setting, attachment: Attachment, anatomy: Anatomy, work: Work) -> Counted:
    counted = _sizes(attachment, anatomy)
    tracker = LiveTensors()
    with tracker.running():
        run = _built(setting, attachment, anatomy, work, tracker)
        if setting.heap_keeps is not None:  # the order of a run decides what its heap looks like; else a later one is
            _evaluate(setting, run, work, tracker, counted)  # fuller by what the optimizer remembers
        with _copies_in_place(run, tracker):
            _train(setting, run, work, tracker, counted)
            with run.copies.set_aside():
                _evaluate(setting, run, work, tracker, counted)
        events = tracker.events
    if setting.heap_keeps is not None and (heap := heap_bytes(events, keeps=setting.heap_keeps)):
        kinds = counted.size("compiled") * work.shapes  # micro-batches of most shapes are not run here
        counted.set_size("heap", heap + tracker.products.further(kinds))
    return counted


def _count_forward(setting: Setting, attachment: Attachment, anatomy: Anatomy, work: Work) -> Counted:
    counted = _sizes(attachment, anatomy)
    tracker = LiveTensors()
    with tracker.running():
        run = _built(setting, attachment, anatomy, work, tracker)
        with _copies_in_place(run, tracker):
            attachment.model.train()
            (batch,) = run.batches.collate(_shares(work)[:1])
            _forward(setting, run, batch, tracker, counted)
    return counted


@contextmanager
def _copies_in_place(run: _Run, tracker: LiveTensors) -> Iterator[None]:
    """Have the weights in the dtype of products inside, as while a run takes its steps."""
    with ExitStack() as stack:
        with tracker.part("weights"):
            stack.enter_context(run.copies.in_place())
        yield


@dataclass(frozen=True)
class _Run:
    attachment: Attachment
    computing: Computing
    batches: StepBatches
    copies: ComputeWeights
    optimizer: Any


def _attached(setting: Setting, blocks: Mapping[str, int]) -> tuple[Attachment, Anatomy]:
    """Return the recipe's method on its model, both on the meta device.

    Args:
        blocks: how many to leave of each stack; all where it is not named.
    """
    recipe = setting.recipe
    base = meta_base(setting.model, setting.config(), recipe.task, setting.labels, setting.world.device)
    fit_to_tokenizer(base.model, setting.tokenizer, seed=recipe.seed)
    anatomy = read_anatomy(base.model, recipe.model.anatomy)
    if blocks:
        shorten(base.model, anatomy, blocks)
        anatomy = read_anatomy(base.model, recipe.model.anatomy)
    rows = rows_to_train(recipe.model, recipe.method, setting.tokenizer)
    return apply_method(base.model, anatomy, recipe.method, train_head=recipe.training.train_head, rows=rows), anatomy


def _built(setting: Setting, attachment: Attachment, anatomy: Anatomy, work: Work, tracker: LiveTensors) -> _Run:
    """Give the model with its method memory, and return it with what trains it."""
    recipe, spec, world = setting.recipe, setting.recipe.training, setting.world
    model: Any = attachment.model
    with tracker.part("weights"):
        give_memory(model, attachment.trainable_parameters().values(), world.device)
    named = list(chain(model.named_parameters(), model.named_buffers()))
    tracker.claim((tensor for name, tensor in named if is_added(name)), "adapter")
    tracker.claim((tensor for name, tensor in named if not is_added(name)), "weights")
    tracker.claim(attachment.shared.values(), "adapter")
    tracker.claim((m.weight for m in model.modules() if isinstance(m, PackedLinear)), NOT_HELD)
    tracker.begin_events({"weights", NOT_HELD} if setting.mapped else {NOT_HELD})
    if setting.task.info.generates:
        tracker.vocabulary = int(model.config.get_text_config().vocab_size)
    setting.task.bind(model, attachment.prepare_inputs)
    allowed = AllowedPaths.of(recipe, world.device, model)
    cut = hooked_last_block(model, anatomy) if setting.last_block else None
    paths = FastPaths(allowed, by_document=setting.by_document, shares_prompts=setting.shares_prompts, last_block=cut)
    world.compute_in(setting.precision.mixed)
    computing = Computing(setting.precision, paths, world.accelerator)
    if setting.recomputes:
        enable_checkpointing(model, paths.again)
    if spec.neftune_noise_alpha:
        add_neftune(model.get_submodule(anatomy.embeddings), spec.neftune_noise_alpha)
    if spec.reference == "live":
        with tracker.part("adapter"):
            setting.task.compare_with(FrozenStart(attachment).in_place)
    joins = setting.by_document and not (recipe.data is not None and recipe.data.packing)
    plain = not setting.recomputes and spec.torch_compile is not True
    casts = setting.precision.compute != setting.precision.weights and plain
    copies = ComputeWeights(model, setting.precision.compute if casts and spec.fast_paths.compute_weights else None)
    groups = parameter_groups(attachment.trainable_parameters(), spec, 1e-3, head=attachment.head)
    optimizer = make_optimizer(spec, groups, 1e-3, world.device)
    collator = Collator(setting.tokenizer, setting.task, joins_rows=joins, shares_prompts=setting.shares_prompts)
    plan = make_plan(spec, len(work.rows), world.size)
    batches = StepBatches(recipe, work.rows, collator, plan, world, None)
    return _Run(attachment, computing, batches, copies, optimizer)


def _sizes(attachment: Attachment, anatomy: Anatomy) -> Counted:
    """Note the sizes of a model: those that a division among processes depends on, and what trains."""
    counted, model = Counted(), attachment.model
    paths = [path for paths in anatomy.layers.values() for path in paths]
    blocks = [sum(tensor.nbytes for tensor in _held(model.get_submodule(path))) for path in paths]
    base = sum(tensor.nbytes for tensor in _held(model))
    counted.set_size("base", base)
    counted.set_size("added", sum(tensor.nbytes for tensor in _added(model)))
    counted.set_size("largest_block", max(blocks, default=0))
    counted.set_size("outside", base - sum(blocks))
    counted.set_size("trainable", sum(each.numel() for each in attachment.trainable_parameters().values()))
    return counted


def _added(model: Any) -> list[torch.Tensor]:
    named = chain(model.named_parameters(), model.named_buffers())
    return [tensor for name, tensor in named if is_added(name)]


def _held(module: Any) -> list[torch.Tensor]:
    packed = {id(each.weight) for each in module.modules() if isinstance(each, PackedLinear)}
    return [tensor for tensor in tensors_of(module) if id(tensor) not in packed]


def _evaluate(setting: Setting, run: _Run, work: Work, tracker: LiveTensors, counted: Counted) -> None:
    if not work.evaluate:
        return
    model, device, batch = run.attachment.model, setting.world.device, run.batches.collator.batch
    model.eval()
    tracker.restart()
    before = tracker.peak
    with torch.no_grad(), setting.precision.inference(device):
        if work.evaluate_ahead:
            setting.task.look_ahead(model, batch(work.evaluate_ahead).to(device))
        setting.task.evaluate(model, batch(work.evaluate).to(device))
    counted.set_size("evaluation", tracker.peak - before)
    counted.note("evaluation", tracker.at_peak)


def _look_ahead(setting: Setting, run: _Run, work: Work, tracker: LiveTensors, counted: Counted) -> None:
    """Take the pass without gradients in which a loss reads all rows of a step (KTO's divergence)."""
    if not work.ahead:
        return
    device = setting.world.device
    run.attachment.model.eval()
    tracker.restart()
    with torch.no_grad(), setting.precision.training(device):
        setting.task.look_ahead(run.attachment.model, run.batches.collator.batch(work.ahead).to(device))
    counted.note("ahead", tracker.at_peak)


def _shares(work: Work) -> list[Share]:
    return [Share(0, list(numbers), [work.rows[n] for n in numbers]) for numbers in work.micro_batches]


def _forward(setting: Setting, run: _Run, batch: Batch, tracker: LiveTensors, counted: Counted) -> LossTerms:
    """Take the forward pass of a micro-batch, and note what it keeps."""
    before = tracker.total
    tracker.restart()
    with run.computing(batch):
        terms = setting.task.loss(run.attachment.model, batch.to(setting.world.device))
    counted.set_size("kept", max(counted.size("kept"), tracker.total - before))
    counted.note("forward", tracker.at_peak)
    return terms


def _train(setting: Setting, run: _Run, work: Work, tracker: LiveTensors, counted: Counted) -> None:
    """Take a step with one micro-batch, and one with two, which has the optimizer's state and gradients beside it."""
    model, spec = run.attachment.model, setting.recipe.training
    parameters = list(run.attachment.trainable_parameters().values())
    accelerator = setting.world.accelerator
    shares = _shares(work)
    compiled = tracker.products.compiled
    for step in (1, 2):
        _look_ahead(setting, run, work, tracker, counted)
        model.train()
        for batch in run.batches.collate(shares[:step]):
            terms = _forward(setting, run, batch, tracker, counted)
            tracker.restart()
            accelerator.backward(terms.loss_sum / 1.0)
            counted.note("backward", tracker.at_peak)
            del terms
            tracker.claim((parameter.grad for parameter in parameters), "gradients")
        tracker.restart()
        extra = run.attachment.extra_loss()
        if extra is not None:
            accelerator.backward(extra)
        del extra
        clip_gradients(accelerator, parameters, spec.max_grad_norm or float("inf"))
        with tracker.part("optimizer"):
            run.optimizer.step()
        counted.note("step", tracker.at_peak)
        run.optimizer.zero_grad()
        if step == 1:
            counted.set_size("compiled", tracker.products.compiled - compiled)
