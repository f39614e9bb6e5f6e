"""What summary.json holds: counts, losses, times, memory, versions."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from peftcli import __version__
from peftcli.assembly.divide_base import base_parameters_of
from peftcli.distributed.devices import peak_memory
from peftcli.distributed.whole_tensors import held_bytes
from peftcli.installed_versions import installed_versions
from peftcli.models.load.dtypes import dtype_name
from peftcli.record.run_summary import Summary
from peftcli.training.best_value import rises
from peftcli.training.session import Session
from peftcli.training.watch.outcome_notes import outcome_notes


def summarise(session: Session, counts: Mapping[str, Any], against: Sequence[str]) -> Summary:
    """Return how the run ended.

    Args:
        counts: `parameter_counts` of what trained.
        against: `outcome_of` the session.
    """
    state, plan = session.state, session.plan
    evaluated = None if state.best_metrics is None else dict(state.best_metrics)
    rate = f"learning rate {session.learning_rate.value:g}: {session.learning_rate.reason}"
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
        notes=[rate, *against],
        weights_dtype=dtype_name(session.precision.weights),
        artifact=session.info.artifact,
        stopped_early=state.stopped_early,
        working_directory=str(Path.cwd()),
        data=session.data.report.for_summary(),
        inputs=state.inputs or {},
        processes=session.world.size if session.world.size > 1 else None,
        strategy=session.world.strategy.name if session.world.size > 1 else None,
        base_bytes_per_process=_base_bytes(session),
    )


def outcome_of(session: Session) -> list[str]:
    """Return what the run's numbers say against its result."""
    state, spec = session.state, session.recipe.training
    losses = [line["loss"] for line in session.directory.metrics.lines() if "loss" in line]
    by, greater = spec.metric_for_best_model, rises(spec)
    return outcome_notes(state.eval_before, state.best_metrics, by=by, greater=greater, losses=losses)


def _base_bytes(session: Session) -> int | None:
    """Return what the base takes in the process that holds most of it; every process must call this."""
    world = session.world
    if world.size == 1:
        return None
    return max(world.gather(held_bytes(base_parameters_of(session.model))))


def versions() -> dict[str, str]:
    """Return the versions of what trained."""
    own = {"peftcli": __version__, "python": sys.version.split()[0], "torch": torch.__version__}
    return own | installed_versions("transformers", "accelerate", "safetensors", "bitsandbytes")
