"""From a recipe to a session, the cheapest first: config, shapes, data, weights. Mistakes come before the weights."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING

from torch import nn

from peftcli.assembly.attach_method import Attached, attach_method
from peftcli.assembly.collect_problems import located
from peftcli.assembly.divide_base import divide_base
from peftcli.assembly.equal_start import start_equal
from peftcli.assembly.precision import Precision, decide_precision
from peftcli.data.rows.collation import Collator
from peftcli.distributed.processes import World
from peftcli.errors import UserError
from peftcli.inference.evaluator import Evaluator, make_evaluator
from peftcli.models.anatomy import Anatomy
from peftcli.models.few_blocks import FirstBlocks
from peftcli.models.last_block import last_block
from peftcli.models.load.dtypes import dtype_name
from peftcli.models.load.identity import both_fingerprints
from peftcli.models.load.load_model import Loaded, load_model
from peftcli.models.packed_documents import PackingRoute, packing_route
from peftcli.protocol.attachment import Attachment
from peftcli.protocol.mergeability import merge_note
from peftcli.protocol.method import MethodInfo
from peftcli.recipe.load_recipe import LoadedRecipe
from peftcli.recipe.schema import Recipe
from peftcli.recipe.yaml.dump_recipe import with_references
from peftcli.record.callback import WatchedRun
from peftcli.record.random_state import seed_everything
from peftcli.record.run_directory import RunDirectory
from peftcli.record.run_inputs import RunInputs
from peftcli.record.train_state import TrainState
from peftcli.tasks.generation import settings_note
from peftcli.tasks.task import Task
from peftcli.training.before_weights import BeforeWeights, before_weights
from peftcli.training.computing import Computing
from peftcli.training.optim.chosen_rate import ChosenRate, choose_rate, with_rate
from peftcli.training.optim.learning_rate import keep_peak_rates, learning_rate_factor
from peftcli.training.optim.neftune import add_neftune
from peftcli.training.optim.optimizers import make_optimizer
from peftcli.training.optim.parameter_groups import parameter_groups, shadowed_notes
from peftcli.training.resuming.compare_inputs import compare_inputs
from peftcli.training.session import Session
from peftcli.training.speed.compiled_blocks import compile_blocks
from peftcli.training.speed.compute_weights import ComputeWeights
from peftcli.training.speed.fast_paths import AllowedPaths, FastPaths
from peftcli.training.speed.padding_free import rows_stay_apart
from peftcli.training.speed.recomputation import need_of, set_up_recomputation
from peftcli.training.speed.sharing_prompts import prompts_are_shared
from peftcli.training.start.reference_rows import StartModel, with_reference
from peftcli.training.start.start_from_rows import start_from_rows
from peftcli.training.start.start_from_stored import start_from_stored
from peftcli.training.step_batches import StepBatches
from peftcli.training.step_plan import token_limit
from peftcli.training.watch.callbacks import Callbacks
from peftcli.training.watch.first_gradients import dropped_blocks_note
from peftcli.training.watch.reporting import Reporter
from peftcli.training.watch.trackers import Earlier, Trackers

if TYPE_CHECKING:
    from accelerate.optimizer import AcceleratedOptimizer
    from transformers import PreTrainedModel


def build_session(
    loaded: LoadedRecipe,
    world: World,
    directory: RunDirectory,
    reporter: Reporter,
    state: TrainState,
    kept: ChosenRate | None = None,
) -> Session:
    """Return a session ready for its first step. Its recipe has the learning rate filled in.

    Args:
        state: fresh, or that of the checkpoint; what is decided for the whole run is taken from it or noted there.
        kept: the learning rate of a run that goes on, as `kept_rate` returns it.

    Raises:
        UserError: anything in the recipe, the model or the data is wrong.
    """
    seed_everything(loaded.recipe.seed)
    ready = before_weights(loaded, world, reporter, state)
    recipe = ready.loaded.recipe
    base = _load(ready, recipe, world)
    attached = _attach(recipe, base, ready, state, world, reporter)
    attachment, anatomy = attached.attachment, attached.anatomy
    computing = _computing(recipe, base, attached, ready.task, state, world, reporter)
    batches = _step_batches(base, attached, ready, computing, world)
    _change_for_training(anatomy, attachment, ready.known.info, ready.task, batches, computing, state, reporter)
    compare_inputs(_inputs_of_weights(loaded, base, computing, batches.max_tokens, state), state, reporter)
    start_from_rows(recipe, attached, batches, computing.precision, state, reporter)
    evaluator = _evaluator(recipe, base, batches.collator, world, ready, computing, reporter)
    start = StartModel(base, ready.known.info, attachment, computing)
    validation, reference = with_reference(recipe, directory, start, evaluator, batches, ready.validation, state)
    rate = choose_rate(recipe, anatomy, kept, reporter.note)
    loaded = with_rate(loaded, rate)
    return Session(
        loaded=loaded,
        world=world,
        directory=directory,
        reporter=reporter,
        tokenizer=ready.known.tokenizer,
        base=base,
        data=ready.data,
        info=ready.known.info,
        anatomy=anatomy,
        attachment=attachment,
        task=ready.task,
        validation=validation,
        batches=batches,
        evaluator=evaluator,
        computing=computing,
        compute_weights=_compute_weights(recipe, base.model, computing.precision, state),
        plan=ready.plan,
        leaving=ready.leaving,
        learning_rate=rate,
        rate_factor=learning_rate_factor(recipe.training, ready.plan.total_steps, rate.value),
        optimizer=_optimizer(recipe, attachment, rate.value, world),
        state=state,
        trackers=_trackers(loaded, world, directory, reporter, state.step),
        callbacks=_callbacks(loaded, ready, directory, reporter, state.step, world),
        reference=reference,
    )


def _load(ready: BeforeWeights, recipe: Recipe, world: World) -> Loaded:
    labels, shares = ready.data.labels, world.strategy.sharded
    return load_model(ready.known.spec, recipe.task, labels, world.device, recipe.seed, world=world, in_shares=shares)


def _attach(
    recipe: Recipe, base: Loaded, ready: BeforeWeights, state: TrainState, world: World, reporter: Reporter
) -> Attached:
    """Attach the method, with values that are the same on every process."""
    known = ready.known
    recipe = recipe.model_copy(update={"method": state.method_of(recipe)})
    attached = attach_method(recipe, base, known.tokenizer, ready.data.labels, world)
    start_from_stored(recipe, known.spec, attached.attachment, state, reporter)
    start_equal(base.model, world)
    for note in shadowed_notes(recipe.training.lr_groups, attached.attachment.trainable_parameters()):
        reporter.note(note)
    return attached


def _computing(
    recipe: Recipe, base: Loaded, attached: Attached, task: Task, state: TrainState, world: World, reporter: Reporter
) -> Computing:
    """Decide in what dtype the run computes and by which faster paths, and tell the notes."""
    spec, width = recipe.training, attached.anatomy.hidden_size
    precision = decide_precision(spec, base.dtype, world.device, width=width, recorded=state.compute_dtype, world=world)
    paths = _fast_paths(recipe, base, attached, task, precision, world, reporter)
    world.compute_in(precision.mixed)
    together = world.strategy.sharded and dropped_blocks_note(base.model.config) is not None
    return Computing(precision, paths, world.accelerator, together)


def _step_batches(
    base: Loaded, attached: Attached, ready: BeforeWeights, computing: Computing, world: World
) -> StepBatches:
    """Return what makes the micro-batches of each step; rows are joined or packed as the model was found to allow."""
    loaded, recipe, paths = ready.loaded, ready.loaded.recipe, computing.fast_paths
    data = recipe.data
    joins = paths.by_document and not (data is not None and data.packing)
    route = _packing_route(loaded, base.model, attached.attachment)
    shares = joins and paths.shares_prompts
    collator = Collator(ready.known.tokenizer, ready.task, route, joins, shares_prompts=shares)
    limit = token_limit(recipe.training, world.device.type, attached.anatomy.hidden_size)
    return StepBatches(recipe, ready.data.train, collator, ready.plan, world, limit)


def _evaluator(
    recipe: Recipe,
    base: Loaded,
    collator: Collator,
    world: World,
    ready: BeforeWeights,
    by: Computing,
    reporter: Reporter,
) -> Evaluator:
    """Return the evaluator; note what the base's own settings do to the texts that it writes."""
    cut, task = by.fast_paths.last_block, ready.task
    writes = bool(recipe.training.eval_generate) or (bool(ready.metrics) and task.metric_kind == "text")
    if writes and task.info.generates and (note := settings_note(base.model, ready.known.tokenizer)):
        reporter.note(note)
    return make_evaluator(recipe, base.model, ready.task, collator, world, by.precision, ready.metrics, cut)


def _inputs_of_weights(
    loaded: LoadedRecipe, base: Loaded, by: Computing, limit: int | None, state: TrainState
) -> RunInputs:
    """Return the base, and what was chosen here and is chosen again when a run goes on; `state` fixes the rest."""
    own = {"the dtype of the frozen weights": dtype_name(base.dtype), "the tokens of a micro-batch": str(limit)}
    if loaded.recipe.training.torch_compile == "auto":
        own["compiled blocks"] = "on" if state.compiles else "off"
    both = both_fingerprints(base.identity.fingerprint, base.identity.tensors)
    return RunInputs(base=both, decisions=own | by.fast_paths.found())


def _trackers(loaded: LoadedRecipe, world: World, directory: RunDirectory, reporter: Reporter, step: int) -> Trackers:
    """Return the recipe's trackers in the main process, none in the others; `step` is where the run goes on."""
    names = loaded.recipe.training.report_to if world.is_main else ()
    earlier = Earlier(step, directory.metrics.lines()) if step and names else None
    return Trackers(names, directory.path, with_references(loaded.recipe, loaded.tree), earlier, reporter.note)


def _callbacks(
    loaded: LoadedRecipe, ready: BeforeWeights, directory: RunDirectory, reporter: Reporter, step: int, world: World
) -> Callbacks:
    """Return the recipe's callbacks in the main process, none in the others."""
    names = loaded.recipe.training.callbacks if world.is_main else ()
    recipe = with_references(loaded.recipe, loaded.tree) if names else {}
    return Callbacks(names, WatchedRun(directory.path, recipe, step, ready.plan.total_steps), reporter.note)


def _packing_route(loaded: LoadedRecipe, model: PreTrainedModel, attachment: Attachment) -> PackingRoute:
    """Return how the base keeps packed documents apart; refuses packing where it lets them see each other."""
    data = loaded.recipe.data
    if data is None or not data.packing:
        return "positions"
    attachment.enable(False)
    try:
        return packing_route(model)
    except UserError as error:
        raise UserError(located(loaded, error.problems)) from error
    finally:
        attachment.enable()


def _fast_paths(
    recipe: Recipe,
    base: Loaded,
    attached: Attached,
    task: Task,
    precision: Precision,
    world: World,
    reporter: Reporter,
) -> FastPaths:
    """Let the task look at the live model, try which faster paths that allows, and tell the notes of both."""
    if (unmerged := merge_note(attached.anatomy, recipe.method, attached.attachment)) is not None:
        reporter.note(unmerged)
    model, prepare = base.model, attached.attachment.prepare_inputs
    blocks = FirstBlocks(model, attached.anatomy.layers)
    with precision.inference(world.device):
        for note in [*attached.notes, *blocks.find(lambda _: task.bind(model, prepare), settles=operator.not_)]:
            reporter.note(note)
        allowed = AllowedPaths.of(recipe, world.device, model)
        by_document = blocks.find(lambda _: rows_stay_apart(recipe, model, allowed))
        shares = by_document and blocks.find(lambda _: prompts_are_shared(recipe, model, allowed, task.prepare_inputs))
        cuts = allowed.last_block and task.info.rows == "labelled"
        cut = last_block(model, attached.anatomy, task.prepare_inputs) if cuts else None
    return FastPaths(allowed, by_document=by_document, shares_prompts=shares, last_block=cut)


def _change_for_training(
    anatomy: Anatomy,
    attachment: Attachment,
    info: MethodInfo,
    task: Task,
    batches: StepBatches,
    computing: Computing,
    state: TrainState,
    reporter: Reporter,
) -> None:
    """Switch on what changes how the model trains: checkpointing, compiled blocks, noise, a base divided among
    processes; note in `state` what is decided here. Weights are whole until the end of it.
    """
    model, spec = attachment.model, batches.spec
    recomputation = set_up_recomputation(
        model,
        spec,
        batches.world,
        computing.fast_paths,
        state.recomputes,
        lambda: need_of(batches, attachment, info, task, computing, anatomy),
    )
    if recomputation.note is not None:
        reporter.note(recomputation.note)
    state.recomputes = recomputation.on
    state.compute_dtype = dtype_name(computing.precision.compute)
    if spec.torch_compile:
        compile_blocks(model, anatomy)
    if spec.neftune_noise_alpha:
        add_neftune(model.get_submodule(anatomy.embeddings), spec.neftune_noise_alpha)
    divide_base(anatomy, attachment, info, batches.world)


def _compute_weights(recipe: Recipe, model: nn.Module, precision: Precision, state: TrainState) -> ComputeWeights:
    """Return the frozen matrices in the dtype of training, or none where that is theirs or gains nothing."""
    spec, compute = recipe.training, precision.compute
    casts = compute != precision.weights and not (state.recomputes or spec.torch_compile)
    return ComputeWeights(model, compute if casts and spec.fast_paths.compute_weights else None)


def _optimizer(recipe: Recipe, attachment: Attachment, rate: float, world: World) -> AcceleratedOptimizer:
    groups = parameter_groups(
        attachment.trainable_parameters(),
        recipe.training,
        rate,
        head=attachment.head,
        ratios=attachment.learning_rate_ratios(),
        multiplicative=attachment.multiplicative(),
    )
    optimizer = make_optimizer(recipe.training, groups, rate, world.device)
    keep_peak_rates(optimizer)
    return world.accelerator.prepare_optimizer(optimizer, device_placement=False)
