"""What a run tells before its first step: what was decided, and how much of the model is trained."""

from __future__ import annotations

from typing import Any

from peftcli.adapters.format import SavedAdapter, recorded_params
from peftcli.adapters.servers import served_by
from peftcli.assembly.reached_weights import reached_share
from peftcli.models.load.load_model import count_parameters
from peftcli.models.targets.target import summarise_ranks, summarise_targets
from peftcli.protocol.attachment import Attachment
from peftcli.recipe.preference_losses import loss_in_words
from peftcli.tasks.task_table import task_info
from peftcli.training.adapter_record import adapter_record
from peftcli.training.session import Session


def header(session: Session) -> dict[str, Any]:
    """Return what was decided before the first step, in the order to show."""
    recipe, plan, spec = session.recipe, session.plan, session.recipe.training
    counts = parameter_counts(session)
    validation = sum(len(rows) for rows in session.validation.values())
    world = session.world
    held = "each with a share of the base (fsdp)" if world.strategy.sharded else "each with the whole base (ddp)"
    processes = f" x {world.size} processes, {held}" if world.size > 1 else ""
    return {
        "model": recipe.model.name_or_path,
        "task": recipe.task,
        "loss": loss_in_words(spec) if task_info(recipe.task).rows == "preferences" else None,
        "method": recipe.method.name,
        "targets": summarise_targets(session.attachment.targets) or None,
        "reaches": _reached(session),
        "ranks": _ranks(session.attachment),
        "data": "\n".join(session.data.report.evidence),
        "rows": f"{len(session.data.train):,} train, {validation:,} validation ({session.data.report.summary()})",
        **{key: counts[key] for key in ("trainable", "total", "percent")},
        "device": str(world.device) + processes,
        "precision": str(session.precision),
        "steps": plan.total_steps,
        "epochs": round(plan.epochs, 3),
        "batch": plan.step_rows,
        "warmup_steps": plan.warmup,
        "learning_rate": session.learning_rate.value,
        "learning_rate_source": session.learning_rate.reason,
        "optimizer": spec.optim,
        "servers": _servers(session),
        "output_dir": str(session.directory.path),
    }


def _reached(session: Session) -> str | None:
    """Return the share of the base's weights that the method changes; None for one that chooses no weights."""
    share = reached_share(session.attachment)
    return None if share is None else f"{share:.2%} of the base's weights"


def _ranks(attachment: Attachment) -> str | None:
    """Return the ranks by role; None where all are one, or there are none."""
    targets = {target.key: target for target in attachment.targets}
    ranks = [(placed.key, placed.part.allotted_rank()) for placed in attachment.placed]
    return summarise_ranks((targets[key], rank) for key, rank in ranks if rank is not None and key in targets)


def _servers(session: Session) -> str | None:
    """Return what will serve the result; None for a task that no server of texts has."""
    task = session.recipe.task
    if not task_info(task).generates:
        return None
    params = recorded_params(session.method, session.attachment.row_numbers())
    adapter = SavedAdapter(params, session.attachment.state_dict(), adapter_record(session))
    return served_by(params, task, adapter)


def parameter_counts(session: Session) -> dict[str, Any]:
    """Return trainable, saved and total numbers of the live model."""
    trainable = sum(p.numel() for p in session.attachment.trainable_parameters().values())
    saved = session.attachment.saved_size()
    total = count_parameters(session.model)
    return {"trainable": trainable, "saved": saved, "total": total, "percent": round(100 * trainable / total, 4)}
