"""More steps for a run than it began with: it goes on from its last checkpoint, its schedule made for the new length.

Only `training.num_train_epochs` and `training.max_steps` may differ, and only towards more steps.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from peftcli.adapters.loading import load_adapter, run_adapter
from peftcli.errors import Problem, UserError
from peftcli.models.load.load_model import load_model, saved_model_spec
from peftcli.protocol.attachment import Attachment
from peftcli.protocol.rows_beside.added_rows import ROWS
from peftcli.recipe.schema import TrainingSpec
from peftcli.record.run_directory import RunDirectory
from peftcli.record.train_state import TrainState
from peftcli.training.optim.learning_rate import learning_rate_factor
from peftcli.training.session import Session
from peftcli.training.step_plan import StepPlan, make_plan


def check_can_be_longer(directory: RunDirectory, state: TrainState | None) -> None:
    """Look whether a run has what it needs to go on for longer, before the model is loaded.

    Args:
        state: of its last checkpoint; None without one, which is where an unfinished run starts again.

    Raises:
        UserError: early stopping ended it, or it is finished and kept no checkpoint of its last step.
    """
    way = f"train into another output_dir with method.init_from={directory.path}, or start again with --overwrite"
    summary = directory.summary() if directory.summary_file.is_file() else None
    early = state.stopped_early if state is not None else summary is not None and summary.get("stopped_early")
    if early:
        problem = f"early stopping ended the run in {directory.path}: its length did not matter"
        raise UserError(problem, suggestion=way)
    if summary is not None and (state is None or state.step != summary.get("steps")):
        kept = "none" if state is None else f"the latest is that of step {state.step}"
        raise UserError(
            f"the finished run in {directory.path} cannot be continued: the checkpoint of its last step "
            f"({summary.get('steps')}) is not there ({kept}; training.save_strategy: no keeps none)",
            suggestion=way,
        )


def lengthen(session: Session, earlier: TrainingSpec) -> str:
    """Prepare a run to go on for more steps than it had; return what its learning rate does from there.

    The best adapter of a finished run, which is in its artifact alone, is put beside its checkpoint again.

    Args:
        session: of the longer recipe, its state that of the last checkpoint.
        earlier: the training block that the run began with.

    Raises:
        UserError: the recipe asks for no more steps than before, or the method's own schedule is over.
    """
    plan = make_plan(earlier, session.plan.rows, session.world.size, evaluates=bool(session.validation))
    _check_length(session, earlier, plan)
    if session.world.is_main:
        _keep_best(session)
    session.world.wait()
    return _course(session, earlier, plan)


def _check_length(session: Session, earlier: TrainingSpec, before: StepPlan) -> None:
    state, spec, total = session.state, session.recipe.training, session.plan.total_steps
    if total <= before.total_steps:
        key = "num_train_epochs" if spec.max_steps is None else "max_steps"
        decides = (
            ""
            if spec.num_train_epochs == earlier.num_train_epochs or key != "max_steps"
            else ("; training.max_steps decides, not num_train_epochs")
        )
        raise UserError(
            Problem(
                f"the recipe asks for {total} steps, and the run in {session.directory.path} has {before.total_steps}: "
                f"only the length may grow{decides}",
                key=f"training.{key}",
                suggestion="give a larger number, or choose another output_dir",
            )
        )
    attachment = session.attachment
    if attachment.settled(state.step, before.total_steps) and not attachment.settled(state.step, total):
        raise UserError(
            f"{session.info.name} has a schedule of its own, which ended before step {state.step} of "
            f"{before.total_steps}: with {total} steps it would start over from ranks that are gone",
            suggestion="train into another output_dir with all steps",
        )


def _keep_best(session: Session) -> None:
    """Write the best adapter beside the checkpoints if only the artifact has it: the run's end looks for it there."""
    step, checkpoints = session.state.best_step, session.directory.checkpoints()
    if step is None or step in checkpoints.bests() or not session.directory.summary_file.is_file():
        return
    checkpoints.save_best(step, {"adapter": _artifact(session)})


def _artifact(session: Session) -> Mapping[str, Tensor]:
    """Return the tensors of a finished run's artifact, as `Attachment.state_dict` has them.

    Raises:
        UserError: it is gone or damaged.
    """
    path = session.directory.path
    if session.info.artifact == "adapter":
        return load_adapter(run_adapter(path)).state
    spec = saved_model_spec(session.recipe.model, path / "model").model_copy(update={"dtype": "auto"})
    model = load_model(spec, session.recipe.task, labels=session.data.labels, seed=session.recipe.seed).model
    rows = {
        f"{path}{ROWS}": model.get_submodule(path).weight[numbers].detach()
        for path, numbers in session.attachment.row_numbers().items()
    }
    names = [name for name in session.attachment.state_dict() if name not in rows]
    return {**Attachment(model, unfrozen=names).state_dict(), **rows}


def _course(session: Session, earlier: TrainingSpec, before: StepPlan) -> str:
    state, plan, peak = session.state, session.plan, session.learning_rate.value
    last = learning_rate_factor(earlier, before.total_steps, peak)(max(0, state.step - 1)) * peak
    following, end = (session.rate_factor(step) * peak for step in (state.step, plan.total_steps - 1))
    schedule = session.recipe.training.lr_scheduler_type
    return (
        f"continuing after step {state.step}, to step {plan.total_steps} instead of {before.total_steps}; the learning "
        f"rate ({schedule}, computed for {plan.total_steps} steps) was {last:.3g} at the last step, is {following:.3g} "
        f"at the next one and {end:.3g} at the end"
    )
