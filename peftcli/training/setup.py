"""From a recipe to a session, in the order of cost: config, shapes, data, weights. What is wrong is said before weights
load."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from peftcli.adapters.loading import load_adapter
from peftcli.assembly.outline import Outline, collecting, located, outline, positions_left
from peftcli.assembly.precision import Precision, decide_precision, pick_device
from peftcli.data.overlap import overlap_notes
from peftcli.data.prepare import prepare
from peftcli.data.prepared_data import PreparedData
from peftcli.data.rows.collation import Collator
from peftcli.distributed.processes import World
from peftcli.errors import Problem, UserError
from peftcli.inference.evaluator import Evaluator
from peftcli.inference.metrics import metric_problems, wanted_metrics
from peftcli.locations import resolve_location
from peftcli.models.anatomy import Anatomy
from peftcli.models.load.load_model import Loaded, load_model
from peftcli.models.load.tokenizers import fit_to_tokenizer
from peftcli.models.packed_documents import PackingRoute, packing_route
from peftcli.models.read_anatomy import read_anatomy
from peftcli.protocol.apply_method import apply_method
from peftcli.protocol.attachment import Attachment
from peftcli.protocol.registry import registry
from peftcli.recipe.load_recipe import LoadedRecipe
from peftcli.recipe.schema import Recipe
from peftcli.record.checkpoints import TrainState
from peftcli.record.random_state import seed_everything
from peftcli.record.run_directory import RunDirectory
from peftcli.tasks.task import Task, TaskSettings
from peftcli.tasks.task_table import TASKS
from peftcli.training.optim.neftune import add_neftune
from peftcli.training.optim.optimizers import make_optimizer
from peftcli.training.optim.parameter_groups import parameter_groups
from peftcli.training.session import Session
from peftcli.training.speed.compiled_blocks import compile_blocks
from peftcli.training.speed.fast_paths import FastPaths
from peftcli.training.speed.last_block import last_block
from peftcli.training.speed.padding_free import rows_stay_apart
from peftcli.training.speed.recomputation import set_up_recomputation
from peftcli.training.step_plan import Plan, make_plan
from peftcli.training.watch.reporting import Reporter

T = TypeVar("T")


@dataclass(frozen=True)
class Ready:
    """What a session needs besides the weights.

    Args:
        validation: the sets that hold rows.
        metrics: those to compute on them.
    """

    known: Outline
    data: PreparedData
    plan: Plan
    validation: dict[str, Any]
    task: Task
    metrics: list[str]


def prepare_data(
    loaded: LoadedRecipe,
    tokenizer: Any,
    anatomy: Anatomy,
    world: World,
    progress: Callable[[int], None] | None = None,
) -> PreparedData:
    """Prepare the rows once: the main process first, the others read what it cached."""
    recipe, spec = loaded.recipe, loaded.recipe.data
    if spec is None:
        raise UserError(loaded.problem("data", "the recipe has no data block"))
    training = recipe.training
    step_rows = training.per_device_train_batch_size * training.gradient_accumulation_steps * world.size
    stream_rows = step_rows * training.max_steps if spec.streaming and training.max_steps else None

    def run() -> PreparedData:
        return prepare(
            spec,
            recipe.task,
            tokenizer,
            seed=recipe.seed,
            where=loaded,
            model_max_positions=positions_left(anatomy, recipe.method),
            problem_type=recipe.model.problem_type,
            stream_rows=stream_rows,
            progress=progress,
        )

    return main_first(world, run)


def prepare_once(loaded: LoadedRecipe) -> None:
    """Check the recipe and fill the cache of prepared rows, before several processes start.

    Raises:
        UserError: anything that can be said before weights load.
    """
    device = pick_device(loaded.recipe.training.device)
    known = outline(loaded, device)
    prepare_data(loaded, known.tokenizer, known.anatomy, World(device))


def main_first(world: World, function: Callable[[], T]) -> T:
    """Run a function on the main process, then on the others."""
    if not world.is_main:
        world.wait()
    result = function()
    if world.is_main:
        world.wait()
    return result


def make_task(recipe: Recipe, tokenizer: Any, labels: Any, train: Any = None, stop_ids: tuple[int, ...] = ()) -> Task:
    """Return the recipe's task; `train` are the rows that balanced class weights are counted in."""
    train_labels = None
    if recipe.training.class_weights == "balanced" and train is not None:
        rows = (row.labels for row in train)
        train_labels = [int(i) for r in rows for i in (r if hasattr(r, "__len__") else (r,)) if int(i) >= 0]
    return TASKS[recipe.task](TaskSettings(tokenizer, labels, recipe.training, train_labels, stop_ids))


def build_session(
    loaded: LoadedRecipe,
    world: World,
    directory: RunDirectory,
    reporter: Reporter,
    *,
    recorded: TrainState,
) -> Session:
    """Return a session ready for its first step.

    Args:
        recorded: where an earlier part of this run stopped, for what it decided; a fresh state for a new run.

    Raises:
        UserError: anything in the recipe, the model or the data is wrong.
    """
    recipe, spec = loaded.recipe, loaded.recipe.training
    seed_everything(recipe.seed)
    torch.set_float32_matmul_precision("high" if spec.tf32 and world.device.type == "cuda" else "highest")
    ready = _before_weights(loaded, world, reporter)
    known, data, task = ready.known, ready.data, ready.task

    base = load_model(known.spec, recipe.task, labels=data.labels, device=world.device, seed=recipe.seed)
    route = _packing_route(loaded, base.model)
    attachment, anatomy = attach_method(recipe, base, known.tokenizer, data.labels)
    precision = decide_precision(
        spec, base.dtype, world.device, width=anatomy.hidden_size, recorded=recorded.compute_dtype
    )
    task.settings = replace(task.settings, positions=positions_left(anatomy, recipe.method))
    with precision.inference(world.device):
        for note in [*base.notes, *task.bind(base.model, attachment.prepare_inputs)]:
            reporter.note(note)
        paths = _fast_paths(recipe, base.model, anatomy, task, world.device)
    collator = _collator(recipe, known.tokenizer, task, route, paths)
    rate = spec.learning_rate or known.info.learning_rate
    session = Session(
        loaded=loaded,
        world=world,
        directory=directory,
        reporter=reporter,
        tokenizer=known.tokenizer,
        base=base,
        data=data,
        info=known.info,
        anatomy=anatomy,
        attachment=attachment,
        task=task,
        collator=collator,
        evaluator=make_evaluator(recipe, base.model, task, collator, world, precision, ready.metrics),
        precision=precision,
        plan=ready.plan,
        learning_rate=rate,
        optimizer=_optimizer(recipe, attachment, rate, world.device),
        scaler=torch.amp.GradScaler(world.device.type, enabled=precision.scaled),
        fast_paths=paths,
        validation=ready.validation,
    )
    _prepare_for_training(session, recorded)
    seed_everything(recipe.seed + world.rank)  # dropout and NEFTune differ between processes, everything else is equal
    return session


def _fast_paths(recipe: Recipe, model: Any, anatomy: Anatomy, task: Task, device: torch.device) -> FastPaths:
    """Return the faster paths that the recipe leaves on, and those that the live model was found to allow."""
    paths = FastPaths(recipe, device)
    paths.by_document = rows_stay_apart(recipe, model, paths)
    if paths.may_cut and task.info.rows == "labelled":
        paths.last_block = last_block(model, anatomy, task.prepare_inputs)
    return paths


def _collator(recipe: Recipe, tokenizer: Any, task: Task, route: PackingRoute, paths: FastPaths) -> Collator:
    collator = Collator(tokenizer, task, recipe.seed, recipe.training.train_sampling_strategy, route)
    collator.joins_rows = paths.by_document and not (recipe.data is not None and recipe.data.packing)
    return collator


def _before_weights(loaded: LoadedRecipe, world: World, reporter: Reporter) -> Ready:
    """Read the config and prepare the rows, check everything that can be checked with them, and tell the notes."""
    known = outline(loaded, world.device)
    data = prepare_data(loaded, known.tokenizer, known.anatomy, world, reporter.preparing)
    plan = make_plan(loaded.recipe.training, len(data.train), world.size)
    validation = {name: rows for name, rows in data.validation.items() if len(rows)}
    task, metrics = _check_with_data(loaded, known, data, validation, plan.total_steps)
    shared = overlap_notes(data, loaded.recipe.data) if loaded.recipe.data is not None else []
    for note in [*known.notes, *data.report.notes, *shared]:
        reporter.note(note)
    return Ready(known, data, plan, validation, task, metrics)


def _packing_route(loaded: LoadedRecipe, model: Any) -> PackingRoute:
    """Return how packed documents are kept apart; refuses packing where the model lets them see each other."""
    data = loaded.recipe.data
    if data is None or not data.packing:
        return "positions"
    try:
        return packing_route(model)
    except UserError as error:
        raise UserError(located(loaded, error.problems)) from error


def _check_with_data(
    loaded: LoadedRecipe, known: Outline, data: PreparedData, validation: Mapping[str, Any], total_steps: int
) -> tuple[Task, list[str]]:
    """Check what depends on the rows (the method's schedule, metrics, weights); return the task and its metrics."""
    recipe = loaded.recipe
    problems: list[Problem] = []
    reasons = registry.method(recipe.method.name).check_run(recipe.method, total_steps)
    problems += [Problem(reason, key="method") for reason in reasons]
    tasks: list[Task] = []
    with collecting(problems):
        tasks.append(make_task(recipe, known.tokenizer, data.labels, data.train, data.stop_token_ids))
    metrics = []
    if tasks and validation:
        metrics = wanted_metrics(tasks[0].default_metrics, recipe.training, list(validation))
        problems += metric_problems(metrics, tasks[0].metric_kind)
    if problems:
        raise UserError(located(loaded, problems))
    return tasks[0], metrics


def attach_method(recipe: Recipe, base: Loaded, tokenizer: Any, labels: Any) -> tuple[Attachment, Anatomy]:
    """Attach the recipe's method to the live model, with fresh values or those of `method.init_from`."""
    fit_to_tokenizer(base.model, tokenizer, seed=recipe.seed)
    anatomy = read_anatomy(base.model, recipe.model.anatomy)
    attachment = apply_method(base.model, anatomy, recipe.method, train_head=recipe.training.train_head)
    attachment.initialise(base.model, tokenizer=tokenizer, labels=labels.names if labels is not None else ())
    if recipe.method.init_from is not None:
        attachment.load_state_dict(load_adapter(adapter_directory(recipe.method.init_from)).state)
    return attachment, anatomy


def adapter_directory(text: str) -> Path:
    """Return the adapter directory of a run, or the directory itself.

    Raises:
        UserError: there is no such directory.
    """
    path = resolve_location(text)
    if path is None or not path.is_dir():
        raise UserError(
            Problem(f"there is no directory {text}", key="method.init_from", suggestion="name a run or an adapter")
        )
    return path / "adapter" if (path / "adapter").is_dir() else path


def _prepare_for_training(session: Session, recorded: TrainState) -> None:
    """Switch on what changes how training computes: checkpointing, compiled blocks, noise."""
    spec, anatomy = session.recipe.training, session.anatomy
    set_up_recomputation(session, recorded.recomputes)
    if spec.torch_compile:
        compile_blocks(session.model, anatomy)
    if spec.neftune_noise_alpha:
        add_neftune(session.model.get_submodule(anatomy.embeddings), spec.neftune_noise_alpha)


def _optimizer(recipe: Recipe, attachment: Attachment, rate: float, device: torch.device) -> torch.optim.Optimizer:
    groups = parameter_groups(
        attachment.trainable_parameters(),
        recipe.training,
        rate,
        head=attachment.head,
        ratios=attachment.learning_rate_ratios(),
    )
    optimizer = make_optimizer(recipe.training, groups, rate, device)
    for group in optimizer.param_groups:
        group["peak_lr"] = group["lr"]
    return optimizer


def make_evaluator(
    recipe: Recipe,
    model: nn.Module,
    task: Task,
    collator: Collator,
    world: World,
    precision: Precision,
    metrics: list[str],
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
        samples=recipe.training.eval_generate if task.info.generates else 0,
    )
