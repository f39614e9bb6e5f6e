"""`train`: one recipe, one run directory."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from peftcli import __version__
from peftcli.adapters.format import describe
from peftcli.adapters.saving import save_adapter
from peftcli.assembly.precision import pick_device
from peftcli.atomic import new_directory
from peftcli.distributed.processes import World
from peftcli.errors import Stopped, UserError
from peftcli.models.load.dtypes import dtype_name
from peftcli.models.load.load_errors import quiet_transformers
from peftcli.models.load.load_model import count_parameters
from peftcli.models.target_modules import summarise_targets
from peftcli.recipe.load_recipe import LoadedRecipe
from peftcli.recipe.yaml.dump_recipe import dump_recipe
from peftcli.record.checkpoints import TrainState
from peftcli.record.run_directory import TRAIN_AGAIN, RunDirectory, RunStatus
from peftcli.training.hub_upload import push
from peftcli.training.loop import train_steps
from peftcli.training.milestones import Milestones
from peftcli.training.session import Session
from peftcli.training.setup import build_session
from peftcli.training.signals import stop_on_signal
from peftcli.training.speed.allocator import keep_freed_memory
from peftcli.training.watch.curves import write_plots
from peftcli.training.watch.profiling import profiled
from peftcli.training.watch.reporting import Reporter, Silent, Summary
from peftcli.training.watch.trackers import Trackers


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
    world = World(pick_device(recipe.training.device))
    if world.device.type == "cpu" and recipe.training.fast_paths.allocator:
        keep_freed_memory()
    reporter = reporter if reporter is not None and world.is_main else Silent()
    directory = RunDirectory(Path(recipe.output_dir or "runs/run"))
    text = dump_recipe(recipe)
    status = RunStatus.EMPTY
    if world.is_main:
        status = directory.check(recipe, resume=resume, overwrite=overwrite)
    status = world.broadcast(status)
    if status is RunStatus.FINISHED:
        return _already_finished(directory, reporter)
    with directory.locked(lock) if world.is_main else nullcontext(), _interruptible(directory, world):
        session, milestones = _start(loaded, world, directory, reporter, text, status)
        with watched(session, profile=profile):
            return _run(session, milestones)


@contextmanager
def _interruptible(directory: RunDirectory, world: World) -> Iterator[None]:
    """Say what an interrupt left where no state could be saved: while loading, or when it was pressed twice.

    Raises:
        Stopped: in place of the interrupt.
    """
    try:
        yield
    except KeyboardInterrupt:
        if world.is_main:
            directory.discard_start()
        raise Stopped(directory.how_to_go_on()) from None


def _already_finished(directory: RunDirectory, reporter: Reporter) -> Summary:
    """Say that nothing is left to do.

    Raises:
        UserError: the run was damaged since.
    """
    found = {"status": "already_finished", "output_dir": str(directory.path)}  # it may have been moved since
    try:
        summary = Summary(**{**directory.summary(), **found})
    except TypeError as error:
        problem = f"{directory.summary_file} is not the summary of a run: {error}"
        raise UserError(problem, suggestion=TRAIN_AGAIN) from error
    if not any((directory.path / str(summary.artifact)).glob("*.safetensors")):
        problem = f"{directory.path} is marked as finished, but its {summary.artifact}/ holds no weights"
        raise UserError(problem, suggestion=f"copy them back, or {TRAIN_AGAIN}")
    reporter.note(f"{directory.path} holds this run, finished; --overwrite trains it again")
    reporter.finished(summary)
    return summary


def _start(
    loaded: LoadedRecipe,
    world: World,
    directory: RunDirectory,
    reporter: Reporter,
    recipe_text: str,
    status: RunStatus,
) -> tuple[Session, Milestones]:
    """Build the session, and put it where an unfinished run left off."""
    checkpoints = directory.checkpoints()
    tree = checkpoints.latest(reporter.note) if status is RunStatus.UNFINISHED else None
    recorded = TrainState(**tree["progress"]) if tree else TrainState()
    session = build_session(loaded, world, directory, reporter, recorded=recorded)
    session.state.compute_dtype = dtype_name(session.precision.compute)
    session.state.recomputes = session.recomputes
    milestones = Milestones(session, directory)
    if tree is not None:
        milestones.resume(tree)
        reporter.note(f"going on after step {session.state.step}")
    elif world.is_main:
        directory.begin(recipe_text)
    if world.is_main:
        directory.write_skipped_rows(session.data.report.skipped)
    world.wait()
    reporter.header(header(session))
    return session, milestones


def _run(session: Session, milestones: Milestones) -> Summary:
    """Take the steps, or stop when asked, and finish."""
    milestones.evaluate_first()
    with session.compute_weights.in_place(), stop_on_signal() as stop:  # from here on there is something to save
        done = train_steps(session, milestones, stop)
    if not done:
        raise Stopped(
            f"stopped after step {session.state.step} of {session.plan.total_steps}; its state is saved, "
            "go on with --resume"
        )
    return finish(session, milestones)


@contextmanager
def watched(session: Session, *, profile: bool) -> Iterator[None]:
    """Switch on what looks on: the trackers of the recipe, and the profiler if asked for."""
    names = session.recipe.training.report_to
    with ExitStack() as stack:
        if session.world.is_main and names:
            session.trackers = Trackers(names, session.directory.path, session.recipe.as_dict())
            stack.callback(session.trackers.finish)
        if session.world.is_main and profile:
            left = session.plan.total_steps - session.state.step
            watcher = profiled(session.directory.path, session.world.device, session.reporter.note, left)
            session.after_step = stack.enter_context(watcher)
        yield


def header(session: Session) -> dict[str, Any]:
    """Return what was decided before the first step, in the order to show."""
    recipe, plan, spec = session.recipe, session.plan, session.recipe.training
    counts = parameter_counts(session)
    validation = sum(len(rows) for rows in session.validation.values())
    processes = f" x {session.world.size} processes" if session.world.size > 1 else ""
    return {
        "model": recipe.model.name_or_path,
        "task": recipe.task,
        "method": recipe.method.name,
        "targets": summarise_targets(session.attachment.targets) or None,
        "data": "\n".join(session.data.report.evidence),
        "rows": f"{len(session.data.train):,} train, {validation:,} validation ({session.data.report.summary()})",
        **{key: counts[key] for key in ("trainable", "total", "percent")},
        "device": str(session.world.device) + processes,
        "precision": str(session.precision),
        "steps": plan.total_steps,
        "epochs": round(plan.epochs, 3),
        "batch": plan.step_rows,
        "warmup_steps": plan.warmup,
        "learning_rate": session.learning_rate,
        "optimizer": spec.optim,
        "output_dir": str(session.directory.path),
    }


def parameter_counts(session: Session) -> dict[str, Any]:
    """Return trainable, saved and total numbers of the live model."""
    trainable = sum(p.numel() for p in session.attachment.trainable_parameters().values())
    saved = session.attachment.saved_size()
    total = count_parameters(session.model)
    return {"trainable": trainable, "saved": saved, "total": total, "percent": round(100 * trainable / total, 4)}


def finish(session: Session, milestones: Milestones) -> Summary:
    """Put the best adapter in place, write the artifact, plots and summary."""
    state, directory, world = session.state, session.directory, session.world
    if state.best_step is not None and state.best_step != state.step:
        session.attachment.load_state_dict(milestones.checkpoints.load_best(state.best_step)["adapter"])
    milestones.tick()
    summary = summarise(session)
    if world.is_main:
        save_artifact(session, summary)
        write_plots(directory.path / "plots", directory.metrics())
        directory.write_summary(summary.as_dict())
        milestones.checkpoints.remove_best()
        session.reporter.finished(summary)
        if session.recipe.training.push_to_hub is not None:
            kind = "model" if session.info.artifact == "model" else "adapter"
            session.reporter.note(f"pushed to {push(directory.path / kind, session.recipe.training.push_to_hub)}")
    world.wait()
    return summary


def save_artifact(session: Session, summary: Summary) -> None:
    """Write adapter/, or model/ for methods whose artifact is a complete model."""
    path = session.directory.path
    if session.info.artifact == "model":
        with new_directory(path / "model") as partial, quiet_transformers():
            session.model.save_pretrained(partial)  # type: ignore[operator]  # every task model has it
            session.tokenizer.save_pretrained(partial)
        return
    labels = session.data.labels
    meta = describe(
        session.attachment,
        session.anatomy,
        task=session.recipe.task,
        base=session.base.identity,
        labels=labels.as_dict() if labels is not None else None,
        versions=summary.versions,
    )
    numbers = {key: value for key, value in (summary.eval or {}).items() if isinstance(value, float)}
    save_adapter(
        path / "adapter",
        attachment_state=session.attachment.state_dict(),
        params=session.recipe.method,
        meta=meta,
        metrics=numbers,
    )


def summarise(session: Session) -> Summary:
    """Return how the run ended."""
    state, plan = session.state, session.plan
    counts = parameter_counts(session)
    evaluated = None if state.best_metrics is None else dict(state.best_metrics)
    return Summary(
        status="early_stopped" if state.stopped_early else "finished",
        method=session.recipe.method.name,
        task=session.recipe.task,
        output_dir=str(session.directory.path),
        trainable=counts["trainable"],
        saved=counts["saved"],
        total=counts["total"],
        steps=state.step,
        total_steps=plan.total_steps,
        epochs=round(state.step / plan.steps_per_epoch, 4),
        train_loss=state.loss_sum / state.loss_count if state.loss_count else None,
        eval=evaluated,
        eval_before=state.eval_before,
        best_step=state.best_step,
        train_runtime=round(state.seconds, 3),
        train_tokens=state.tokens,
        supervised_tokens=state.supervised_tokens,
        tokens_per_second=round(state.tokens / state.step_seconds, 1) if state.step_seconds else 0.0,
        peak_memory_bytes=peak_memory(session.world.device),
        device=str(session.world.device),
        precision=str(session.precision),
        versions=versions(),
        artifact=session.info.artifact,
        stopped_early=state.stopped_early,
        data=session.data.report.for_summary(),
    )


def peak_memory(device: torch.device) -> int:
    """Return the most bytes that the run held: allocated on CUDA, else resident in this process (0: unknown)."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if os.name == "nt":
        return 0
    import resource

    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024  # kilobytes, but for macOS


def versions() -> dict[str, str]:
    """Return the versions of what trained."""
    found = {"peftcli": __version__, "python": sys.version.split()[0], "torch": torch.__version__}
    for name in ("transformers", "accelerate", "safetensors", "bitsandbytes"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
