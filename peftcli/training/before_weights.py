"""What can be known and checked before weights load: config, shapes, rows, the plan of the steps, the task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from peftcli.assembly.collect_problems import collecting, located
from peftcli.assembly.outline import Outline, outline
from peftcli.assembly.positions_left import positions_left
from peftcli.assembly.recipe_data import prepare_data
from peftcli.assembly.recipe_task import make_task
from peftcli.data.overlap import overlap_notes
from peftcli.data.prepared_data import PreparedData
from peftcli.data.rows.row_set import RowSet
from peftcli.data.rows.streaming import StreamedRows
from peftcli.deliverables.generation_file import generation_notes
from peftcli.deliverables.learnt_texts import learnt_texts
from peftcli.deliverables.leaving_model import LeavingModel, leaving_model
from peftcli.distributed.devices import pick_device
from peftcli.distributed.processes import World
from peftcli.errors import Problem, UserError
from peftcli.inference.metrics import wanted_metrics
from peftcli.names import NAMES
from peftcli.protocol.registry import registry
from peftcli.recipe.checks.idle_keys import KnownRows, idle_keys
from peftcli.recipe.load_recipe import LoadedRecipe
from peftcli.record.train_state import TrainState
from peftcli.tasks.metric_table import metric_problems
from peftcli.tasks.task import Task
from peftcli.training.best_value import direction_notes
from peftcli.training.resuming.compare_inputs import compare_inputs, inputs_before_weights
from peftcli.training.resuming.step_rows import check_step_rows
from peftcli.training.speed.compile_trial import Work, decide_compiling
from peftcli.training.step_plan import StepPlan, make_plan, plan_notes
from peftcli.training.training_checks import TrainingChecks
from peftcli.training.watch.reporting import Reporter


@dataclass(frozen=True)
class BeforeWeights:
    """What a session needs besides the weights.

    Args:
        loaded: the recipe, in which it is decided whether blocks are compiled.
        validation: the sets that hold rows.
        metrics: those to compute on them.
        leaving: the description of the model that the run will leave.
    """

    known: Outline
    loaded: LoadedRecipe
    data: PreparedData
    plan: StepPlan
    validation: dict[str, RowSet]
    task: Task
    metrics: list[str]
    leaving: LeavingModel


def prepare_once(loaded: LoadedRecipe) -> None:
    """Check the recipe and fill the cache of prepared rows, before several processes start.

    Raises:
        UserError: anything that can be said before weights load.
    """
    device = pick_device(loaded.recipe.training.device)
    known = outline(loaded, device, TrainingChecks())
    prepare_data(loaded, known.tokenizer, known.anatomy, World(device))


def before_weights(loaded: LoadedRecipe, world: World, reporter: Reporter, state: TrainState) -> BeforeWeights:
    """Read the config and prepare the rows, check everything that can be checked with them, and tell the notes.

    Raises:
        UserError: every problem found at the first place where there are any.
    """
    recipe = loaded.recipe
    known = outline(loaded, world.device, TrainingChecks())
    data = prepare_data(loaded, known.tokenizer, known.anatomy, world, reporter.preparing)
    evaluates = recipe.training.eval_strategy != "no"
    validation = {name: rows for name, rows in data.validation.items() if len(rows) and evaluates}
    plan = make_plan(recipe.training, len(data.train), world.size, evaluates=bool(validation))
    check_step_rows(state.inputs, recipe.training, world.size)
    compare_inputs(inputs_before_weights(known, data, validation, world, plan.step_rows), state, reporter)
    task, metrics = _check_with_data(loaded, known, data, validation, plan.total_steps)
    sharing = [world.strategy.note] if world.strategy.note is not None else []
    shared = overlap_notes(data, recipe.data) if recipe.data is not None else []
    leaving = leaving_model(known.spec, recipe.task, known.tokenizer, learnt_texts(recipe, data, known.tokenizer))
    problem = data.labels.problem if data.labels else None
    rows = KnownRows(data.report.formats, problem, sum(map(len, validation.values())))
    upside_down = direction_notes(recipe.training) if validation else []
    of_recipe = [*sharing, *upside_down, *plan_notes(plan, recipe.training), *idle_keys(loaded, NAMES, rows)]
    of_rows = [*data.report.notes, *shared, *_rows_beyond(known, data.report.longest)]
    for note in [*known.notes, *generation_notes(leaving), *of_recipe, *of_rows]:
        reporter.note(note)
    decided = _decide_compiling(loaded, known, data, plan, world, state, reporter)
    return BeforeWeights(known, decided, data, plan, validation, task, metrics, leaving)


def _rows_beyond(known: Outline, longest: int) -> list[str]:
    """Return that rows are longer than a model was made for that has no table of positions, which would bound them."""
    if known.anatomy.max_positions is not None or known.made_for is None or known.made_for >= longest:
        return []
    return [
        f"the longest row has {longest:,} tokens, and the model was made for {known.made_for:,} "
        "(max_position_embeddings in its config.json): what lies behind them is learnt at positions that it does not "
        "know"
    ]


def _decide_compiling(
    loaded: LoadedRecipe,
    known: Outline,
    data: PreparedData,
    plan: StepPlan,
    world: World,
    state: TrainState,
    reporter: Reporter,
) -> LoadedRecipe:
    """Return the recipe with compiled blocks or without, note that in `state`, and tell why."""
    streamed = plan.total_steps if isinstance(data.train, StreamedRows) else None
    work = Work.of(float(data.train.lengths.sum()) * plan.epochs / world.size, known.anatomy, streamed)
    found = decide_compiling(loaded, work, world, state.compiles, reporter.note)
    if found.note is not None:
        reporter.note(found.note)
    state.compiles = found.on
    return loaded.with_training(torch_compile=found.on)


def _check_with_data(
    loaded: LoadedRecipe, known: Outline, data: PreparedData, validation: Mapping[str, RowSet], total_steps: int
) -> tuple[Task, list[str]]:
    """Check what depends on the rows (the method's schedule, metrics, weights); return the task and its metrics."""
    recipe = loaded.recipe
    reasons = registry.method(recipe.method.name).check_run(recipe.method, total_steps)
    problems = [Problem(reason, key="method") for reason in reasons]
    tasks: list[Task] = []
    with collecting(problems):
        task = make_task(
            recipe,
            known.tokenizer,
            data.labels,
            train=data.train,
            stop_ids=data.stop_token_ids,
            positions=positions_left(known.anatomy, recipe.method),
            target_positions=known.anatomy.max_target_positions,
        )
        tasks.append(task)
    metrics = []
    if tasks and validation:
        metrics = wanted_metrics(tasks[0].default_metrics, recipe.training, list(validation))
        problems += metric_problems(metrics, tasks[0].metric_kind)
    if problems:
        raise UserError(located(loaded, problems))
    return tasks[0], metrics
