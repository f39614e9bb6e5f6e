"""The end of a run: the best adapter in place, the artifact, plots and summary written."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from peftcli.adapters.saving import save_adapter
from peftcli.atomic import new_directory
from peftcli.deliverables.checksums import write_checksums
from peftcli.deliverables.config_file import CONFIG, make_readable, restore_padding
from peftcli.deliverables.generation_file import make_savable
from peftcli.deliverables.write_beside import write_beside_weights
from peftcli.distributed.whole_tensors import whole_tree
from peftcli.layers.added_modules import is_added
from peftcli.process_state import quiet_transformers
from peftcli.protocol.attachment import Attachment
from peftcli.protocol.rows_beside.added_rows import tied_to
from peftcli.protocol.rows_beside.row_rules import rows_of
from peftcli.record.run_summary import Summary
from peftcli.record.shown_numbers import metric
from peftcli.training.adapter_record import adapter_record
from peftcli.training.hub_upload import push
from peftcli.training.milestones import Milestones
from peftcli.training.run_header import parameter_counts
from peftcli.training.session import Session
from peftcli.training.summarise import outcome_of, summarise
from peftcli.training.watch.curves import write_plots
from peftcli.write_errors import OTHER_RUN


def finish(session: Session, milestones: Milestones) -> Summary:
    """Put the best adapter in place, write the artifact, plots and summary.

    Raises:
        UserError: the weights are not finite.
    """
    state, directory, world = session.state, session.directory, session.world
    milestones.meter.close()
    milestones.require_finite("nothing was written as its result")
    counts = parameter_counts(session)  # of what trained: loading the best can leave out what served training only
    if state.best_step is not None and state.best_step != state.step:
        session.attachment.load_state_dict(milestones.checkpoints.load_best(state.best_step)["adapter"])
        world.wait()  # all have read it before it is removed below
    milestones.tick()
    against = [*outcome_of(session), *session.data.skipped_note(), *session.data.repeated_notes()]
    summary = summarise(session, counts, against)
    divided = world.strategy.sharded and session.info.artifact == "model"
    weights = whole_tree(session.model.state_dict(), keep=world.is_main) if divided else None
    if world.is_main:
        save_artifact(session, summary, weights)
        directory.write_skipped_rows(session.data.skipped_rows())
        write_plots(directory.path / "plots", directory.metrics.lines())
        directory.write_summary(summary.as_dict())
        directory.tidy()
        for note in against:
            session.reporter.note(note)
        session.reporter.finished(summary)
        session.callbacks.finished(summary)
    world.wait()
    if world.is_main and session.recipe.training.push_to_hub is not None:  # nobody waits for an upload
        kind = "model" if session.info.artifact == "model" else "adapter"
        session.reporter.note(f"pushed to {push(directory.path / kind, session.recipe.training.push_to_hub)}")
    return summary


def save_artifact(session: Session, summary: Summary, weights: dict[str, Tensor] | None) -> None:
    """Write adapter/, or model/ for methods whose artifact is a complete model.

    Args:
        weights: whole, of a model that is divided among processes; None where the live model has them.
    """
    path = session.directory.path
    if session.info.artifact == "model":
        with new_directory(path / "model", instead=OTHER_RUN) as partial:
            _write_model(partial, session, weights)
        return
    meta = adapter_record(session)
    numbers = {
        key: metric(key, value)
        for key, value in (summary.eval or {}).items()
        if isinstance(value, float) and not key.endswith(("_runtime", "_per_second"))
    }
    save_adapter(
        path / "adapter",
        attachment_state=session.attachment.state_dict(),
        params=session.method,
        meta=meta,
        metrics=numbers,
        leaving=session.leaving,
    )


def _write_model(directory: Path, session: Session, weights: dict[str, Tensor] | None) -> None:
    """Write a complete model: transformers writes the weights, the rest is as for a merged model."""
    model, leaving = session.base.model, session.leaving
    make_savable(model)
    restore_padding(model.config, leaving)
    with quiet_transformers():
        model.save_pretrained(directory, state_dict=_with_token_rows(session.attachment, weights))
    write_beside_weights(directory, leaving, model)
    make_readable(directory / CONFIG, model.config, leaving)
    write_checksums(directory)


def _with_token_rows(attachment: Attachment, weights: dict[str, Tensor] | None) -> dict[str, Tensor] | None:
    """Return a model's tensors with the trained rows of tokens in its tables; None where the live model has them all.

    Args:
        weights: whole, of a model that is divided; None of one that is not.
    """
    if not attachment.rows:
        return weights
    model = attachment.model
    state = {name: tensor for name, tensor in (weights or model.state_dict()).items() if not is_added(name)}
    numbers = attachment.row_numbers()
    for path, rows in rows_of(attachment.row_tensors()).items():
        table = state[f"{path}.weight"].detach().clone()
        table[numbers[path]] = rows.detach().to(table)
        state |= {f"{tied}.weight": table for tied in tied_to(model, path)}  # one tensor: they stay tied
    return state
