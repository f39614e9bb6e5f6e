"""`train`: one recipe, one run directory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftcli.assembly.run_reference import write_run_reference
from peftcli.data.prepared_data import PreparedData
from peftcli.distributed.accelerate_engine import accelerate_state_kept
from peftcli.distributed.devices import pick_device
from peftcli.distributed.memory_errors import is_out_of_memory, memory_for
from peftcli.distributed.processes import World
from peftcli.errors import OutOfResources, Stopped, UserError
from peftcli.models.anatomy import Anatomy
from peftcli.models.own_code import remember_allowed_code
from peftcli.process_state import compiler_settings, libraries_quiet, matmul_precision
from peftcli.recipe.load_recipe import LoadedRecipe
from peftcli.recipe.schema import Recipe, TrainingSpec
from peftcli.recipe.yaml.dump_recipe import dump_recipe
from peftcli.record.listing.failure import forget_failure, write_failure
from peftcli.record.open_rate import with_open_rate
from peftcli.record.own_entries import ARTIFACTS
from peftcli.record.random_state import random_numbers_kept
from peftcli.record.run_directory import TRAIN_AGAIN, RunDirectory, RunStatus
from peftcli.record.run_summary import Summary
from peftcli.record.train_state import TrainState
from peftcli.shown_text import all_of
from peftcli.stop_signals import stop_on_signal
from peftcli.training.finish_run import finish
from peftcli.training.loop import train_steps
from peftcli.training.milestones import Milestones
from peftcli.training.optim.chosen_rate import kept_rate
from peftcli.training.resuming.longer_run import check_can_be_longer, lengthen
from peftcli.training.resuming.step_rows import check_step_rows
from peftcli.training.run_header import header
from peftcli.training.session import Session
from peftcli.training.setup import build_session
from peftcli.training.speed.compile_trial import without_trial
from peftcli.training.speed.compiled_blocks import tracing_settings
from peftcli.training.step_batches import prepared_ahead, worker_threads
from peftcli.training.watch.profiling import profiled
from peftcli.training.watch.reporting import Reporter, Silent
from peftcli.typed_record import record_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def train(
    loaded: LoadedRecipe,
    *,
    resume: bool = False,
    overwrite: bool = False,
    reporter: Reporter | None = None,
    profile: bool = False,
    lock: bool = True,
) -> Summary:
    """Train what a recipe says, and leave a run directory.

    The process is left as it was found, its random numbers included. What lasts is for the command line: see
    `process_state`, whose `keep_freed_memory` makes the steps of a run on a CPU faster.

    Args:
        resume: go on with an unfinished run of this recipe.
        overwrite: replace a run that is in the output directory.
        reporter: who shows it; by default nobody.
        profile: write a trace of a few steps, and a table of where their time and memory went.
        lock: keep a second run out of the output directory; False where its file system has no locks.

    Returns:
        The summary; of the run that is there already, if this recipe was finished before.

    Raises:
        UserError: the recipe, the model, the data or the output directory is wrong.
        Stopped: the user stopped it; a checkpoint holds its state.
    """
    recipe = loaded.recipe
    world = World(pick_device(recipe.training.device), recipe.distributed)
    reporter = reporter if reporter is not None and world.is_main else Silent()
    directory = RunDirectory(Path(recipe.output_dir or "runs/run"))
    status = RunStatus.EMPTY
    if world.is_main:
        status = directory.check(recipe, resume=resume, overwrite=overwrite)
        remember_allowed_code(loaded)
    status = world.broadcast(status)
    if status is RunStatus.FINISHED:
        if world.is_main:
            directory.tidy_if_needed(lock)
        return _already_finished(directory, recipe, world.size, reporter)
    with (
        directory.locked(lock) if world.is_main else nullcontext(),
        _interruptible(directory, world),
        _borrowed(recipe.training),
    ):
        if world.is_main and directory.check(recipe, resume=resume, overwrite=overwrite) is not status:
            # another process was here, or the path leads through a directory that did not exist (`new/../run`)
            remedy = "start the same command again to see what it is"
            raise UserError(f"{directory.path} now holds a run that was not there a moment ago", suggestion=remedy)
        with memory_for("before the first step", for_training(recipe)):
            session, milestones = _start(loaded, world, directory, reporter, status)
        with (
            memory_for(lambda: f"at step {session.state.step + 1}", for_training(recipe)),
            _watched(session, profile=profile) as after_step,
            closing(world.watch),
        ):
            return _run(session, milestones, after_step)


@dataclass(frozen=True)
class Rehearsal:
    """What a run has before its first step, without the model.

    Args:
        processes: that share the work.
        recomputes: whether activations are computed again in the backward pass.
    """

    processes: int
    recomputes: bool
    tokenizer: PreTrainedTokenizerBase
    anatomy: Anatomy
    data: PreparedData


def rehearse(loaded: LoadedRecipe, *, overwrite: bool = False, reporter: Reporter | None = None) -> Rehearsal:
    """Do everything that a new run does before its first step, and write nothing into its directory.

    Weights are loaded, the method is attached, rows are prepared (their cache is that of a run), and the header is
    shown. No steps are tried for `torch_compile: auto`.

    Raises:
        UserError: what the run would be refused for.
    """
    recipe = loaded.recipe
    world = World(pick_device(recipe.training.device), recipe.distributed)
    reporter = reporter if reporter is not None and world.is_main else Silent()
    directory = RunDirectory(Path(recipe.output_dir or "runs/run"))
    if world.is_main and directory.check(recipe, resume=False, overwrite=overwrite) is RunStatus.FINISHED:
        reporter.note(f"{directory.path} holds this run, finished: peft train would do nothing without --overwrite")
    with _borrowed(recipe.training), memory_for("before the first step", for_training(recipe)):
        session = build_session(without_trial(loaded, reporter.note), world, directory, reporter, TrainState())
        world.wait()
        reporter.header(header(session))
        recomputes = bool(session.state.recomputes)
        return Rehearsal(world.size, recomputes, session.tokenizer, session.anatomy, session.data)


@contextmanager
def started(loaded: LoadedRecipe, directory: Path) -> Iterator[tuple[Session, Milestones]]:
    """Start a new run in an empty directory, of which trackers and callbacks are told nothing; yield it as it stands.

    Raises:
        UserError: what the run would be refused for.
    """
    recipe = loaded.recipe
    world = World(pick_device(recipe.training.device), recipe.distributed)
    with _borrowed(recipe.training), memory_for("while two steps were measured", for_training(recipe)):
        reporter = Silent()
        yield _start(without_trial(loaded, reporter.note), world, RunDirectory(directory), reporter, RunStatus.EMPTY)


def for_training(recipe: Recipe) -> str:
    """Return what takes less memory in training."""
    training, data = recipe.training, recipe.data
    lower = [f"training.per_device_train_batch_size (now {training.per_device_train_batch_size})"]
    if data is not None:
        lower.append(f"data.max_length (now {data.max_length})")
    checkpointing = "" if training.gradient_checkpointing is True else ", set training.gradient_checkpointing: true"
    return f"lower {' or '.join(lower)}{checkpointing}, or load the base in fewer bits (model.load_in_4bit: true)"


@contextmanager
def _interruptible(directory: RunDirectory, world: World) -> Iterator[None]:
    """Say what is left where no state could be saved: an interrupt while loading, a second one, a full disk.

    Raises:
        Stopped: in place of the interrupt.
        OutOfResources: with what is left.
    """
    forget_failure(directory.path)
    try:
        with _failure_told(directory, world):
            yield
    except OutOfResources as error:
        if world.is_main:
            with suppress(OutOfResources):
                directory.discard_start()
        raise error.with_what_is_left(directory.what_is_left()) from error
    except KeyboardInterrupt:
        if world.is_main:
            directory.discard_start()
        raise Stopped(directory.how_to_go_on()) from None


@contextmanager
def _failure_told(directory: RunDirectory, world: World) -> Iterator[None]:
    """Leave the reason of an error in the directory of a run that had begun, for whoever lists runs."""
    try:
        yield
    except Stopped:
        raise
    except Exception as error:
        if world.is_main and directory.recipe_file.is_file() and not directory.summary_file.is_file():
            write_failure(directory.path, error)
        raise


@contextmanager
def _borrowed(spec: TrainingSpec) -> Iterator[None]:
    """Set what a run needs of the whole process, and put it back."""
    tracing = tracing_settings() if spec.torch_compile else {}
    with (
        random_numbers_kept(),
        accelerate_state_kept(),
        matmul_precision("highest"),  # a step's own passes may use TF32
        compiler_settings(tracing),
        libraries_quiet(),
    ):
        yield


def _already_finished(directory: RunDirectory, recipe: Recipe, processes: int, reporter: Reporter) -> Summary:
    """Return the summary of the run that is there, and say that nothing is left to do.

    Raises:
        UserError: the run was damaged since, or a step of it has another number of rows than one of this recipe.
    """
    summary = directory.summary_record()
    if not any((directory.path / summary.artifact).glob("*.safetensors")):
        problem = f"{directory.path} is marked as finished, but its {summary.artifact}/ holds no weights"
        raise UserError(problem, suggestion=f"copy them back, or {TRAIN_AGAIN}")
    if sharing := directory.shared_otherwise(recipe):
        check_step_rows(summary.inputs, recipe.training, processes)
        reporter.note(f"{all_of(sharing)}: not applied, since the run is finished")
    more = "--resume with a larger training.num_train_epochs or training.max_steps continues it"
    reporter.note(f"{directory.path} holds this run, finished; {more}, --overwrite trains it again")
    reporter.finished(summary)
    return summary


def _start(
    loaded: LoadedRecipe, world: World, directory: RunDirectory, reporter: Reporter, status: RunStatus
) -> tuple[Session, Milestones]:
    """Build the session, and put it where an unfinished run left off."""
    earlier = _earlier(directory, loaded.recipe.training) if status is RunStatus.LONGER else None
    goes_on = status in (RunStatus.UNFINISHED, RunStatus.LONGER)
    found = directory.checkpoints().latest(reporter.note, _checkpoint) if goes_on else None
    state = found.state if found else TrainState()
    if earlier is not None:
        check_can_be_longer(directory, found.state if found else None)
    kept = kept_rate(directory, loaded.recipe) if goes_on else None
    session = build_session(loaded, world, directory, reporter, state, kept)
    milestones = Milestones(session)
    if found is not None:
        reporter.note(f"continuing after step {state.step}" if earlier is None else lengthen(session, earlier))
        with _fits(found.path):
            milestones.resume(found.tree)
        milestones.find_best()
        if world.is_main and directory.recipe() != session.recipe:  # longer, or its rows shared in another way
            directory.reopen(_recipe_text(session))
    elif world.is_main:
        if goes_on:
            reporter.note("there is no checkpoint to continue from: the run starts again at the first step")
        directory.begin(_recipe_text(session), keep=ARTIFACTS if goes_on else ())
    if world.is_main and session.reference is not None:
        write_run_reference(directory.path, session.reference)
    if world.is_main:
        directory.write_skipped_rows(session.data.report.skipped)
    world.wait()
    reporter.header(header(session))
    return session, milestones


def _recipe_text(session: Session) -> str:
    """Return what recipe.yaml holds: every default filled in, and where a rate is from that the recipe left open."""
    text, rate = dump_recipe(session.recipe, session.loaded.tree), session.learning_rate
    return with_open_rate(text, rate.reason) if rate.left_open else text


def _earlier(directory: RunDirectory, spec: TrainingSpec) -> TrainingSpec:
    """Return the training block that a run began with, a step's rows shared as they are now."""
    now = {
        "per_device_train_batch_size": spec.per_device_train_batch_size,
        "gradient_accumulation_steps": spec.gradient_accumulation_steps,
    }
    return directory.recipe().training.model_copy(update=now)


@dataclass(frozen=True)
class _Found:
    """A checkpoint to go on from."""

    path: Path
    tree: dict[str, Any]
    state: TrainState


def _checkpoint(tree: Any, path: Path) -> _Found:
    """Return a checkpoint with the state that it holds.

    Raises:
        UserError: something is missing.
    """
    with _fits(path):
        state = record_of(TrainState, tree["progress"], path / "state.json", key="progress")
    if path.name != f"step-{state.step:06d}":
        raise UserError(f"the checkpoint {path} holds the state of another step ({state.step})")
    return _Found(path, tree, state)


@contextmanager
def _fits(checkpoint: Path) -> Iterator[None]:
    """Say that a checkpoint does not hold what this run needs, although its files are what was written.

    Raises:
        UserError: in place of the errors of Python and torch about odd values.
    """
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        remedy = "it may be of another version; start again with --overwrite"
        raise UserError(f"the checkpoint {checkpoint} does not fit this run: {error!r}", suggestion=remedy) from error


@contextmanager
def _watched(session: Session, *, profile: bool) -> Iterator[Callable[[], None]]:
    """Start trackers, callbacks, and the profiler if asked for; yield what to call after each step."""
    with ExitStack() as stack:
        stack.enter_context(session.trackers.running())
        stack.enter_context(session.callbacks.running())
        if not (profile and session.world.is_main):
            yield lambda: None
            return
        left = session.plan.total_steps - session.state.step
        watcher = profiled(session.directory.path, session.world.device, session.reporter.note, left)
        yield stack.enter_context(watcher)


def _run(session: Session, milestones: Milestones, after_step: Callable[[], None]) -> Summary:
    """Take the steps, or stop when asked, and finish.

    Raises:
        Stopped: asked to; the state is saved.
    """
    milestones.evaluate_first()
    steps = range(session.state.step, session.plan.total_steps)
    workers = worker_threads(session.recipe.training, session.world.device)
    with stop_on_signal() as stop:  # from here on there is something to save
        with (
            session.compute_weights.in_place(),
            prepared_ahead(session.batches, steps, workers) as upcoming,
        ):
            # a run that ended early may have been killed before its results were written
            done = milestones.catch_up(stop) and (
                session.state.done or train_steps(session, milestones, upcoming, stop, after_step)
            )
        if not done:
            raise Stopped(
                f"stopped after step {session.state.step} of {session.plan.total_steps}; its state is saved. "
                f"Continue with: peft train {session.directory.path / 'recipe.yaml'} --resume"
            )
        return finish(session, milestones)  # who asks to stop now gets the whole result, in a moment
