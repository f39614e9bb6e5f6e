"""`peft estimate --measure`: two real steps in a process of their own, the largest micro-batch in the first of them.

The process imports what `peft train` does, in the same order, and starts the run as that does, in a directory that is
removed. An evaluation comes before the steps, and one and a checkpoint after them, as in a run: what the steps left of
the heap is not what the first one found.

Run as `python -m peftcli.analysis.estimate.measured_run RECIPE [KEY=VALUE ...]`; it prints one JSON object.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from peftcli.analysis.estimate.memory_parts import Device, Estimate
from peftcli.errors import UserError
from peftcli.process_state import large_imports, libraries_quiet
from peftcli.training.speed.own_process import ProcessFailed, answer, ask

if TYPE_CHECKING:
    from peftcli.training.milestones import Milestones
    from peftcli.training.session import Session


def measured(recipe: Path, changes: Sequence[str]) -> Estimate:
    """Return what two real steps took, in a process of their own.

    Raises:
        UserError: what the run itself would refuse; or its process was killed.
    """
    took = measure(recipe, changes)
    rate = took["tokens_per_second"]
    seconds = took["tokens"] / rate if rate else None
    device = Device(int(took["peak_memory_bytes"]), {})
    return Estimate("measured", [device], seconds, bool(took["recomputes"]))


def measure(recipe: Path, changes: Sequence[str]) -> dict[str, float]:
    """Return `peak_memory_bytes`, `tokens_per_second`, `tokens` of the whole run, and `recomputes` (0 or 1).

    Raises:
        UserError: what the run itself would refuse; or its process was killed.
    """
    try:
        found: dict[str, float] = ask(__name__, [str(recipe), *changes])
    except ProcessFailed as error:
        raise UserError(f"the steps could not be measured: {error}", suggestion="estimate without --measure") from error
    return found


def _steps(recipe: Path, changes: Sequence[str], directory: Path) -> dict[str, float]:
    """Start the run, take two steps, evaluate and save, as `peft train` does."""
    from peftcli.assembly.recipe_to_train import recipe_to_train, set_allocator

    loaded, _ = recipe_to_train(recipe, changes)
    with large_imports():
        from peftcli.training.run import started

    set_allocator(loaded.recipe.training)
    with libraries_quiet(), started(loaded, directory) as (session, milestones):
        return _measured(session, milestones)


def _measured(session: Session, milestones: Milestones) -> dict[str, float]:
    from peftcli.analysis.estimate.largest_batches import largest, step_sizes, target_lengths
    from peftcli.analysis.estimate.step_rates import keep_rate
    from peftcli.distributed.devices import peak_memory
    from peftcli.stop_signals import stop_on_signal
    from peftcli.training.loop import train_steps

    rows, device, state = session.data.train, session.world.device, session.state
    joined, lengths = session.batches.collator.joins_rows, session.batches.lengths
    sizes = step_sizes(session.recipe, rows, lengths, session.plan, session.batches.max_tokens, joined)
    index, _ = largest(lengths, sizes, joined, target_lengths(rows))
    milestones.evaluate_first()
    started_at = time.perf_counter()
    with stop_on_signal() as stop, session.compute_weights.in_place():
        other = (index + 1) % max(1, len(sizes))
        taken = [index] if session.plan.total_steps == 1 else [index, other]
        train_steps(session, milestones, (session.batches(step) for step in taken), stop, lambda: None)
        seconds = state.step_seconds or time.perf_counter() - started_at
        if state.step < session.plan.total_steps:  # else the loop has done it
            _end(session, milestones)
    tokens = state.tokens + state.window.get("tokens", 0.0)
    rate = tokens / seconds if seconds else 0.0
    keep_rate(session.recipe, device, session.base.identity.shape, bool(state.recomputes), rate)
    return {
        "peak_memory_bytes": peak_memory(device),
        "tokens_per_second": rate,
        "tokens": _tokens_of_run(session, tokens),
        "recomputes": float(bool(state.recomputes)),
    }


def _tokens_of_run(session: Session, tokens: float) -> float:
    """Return the tokens of all steps; of a stream, whose rows are not measured before, by those of the steps taken."""
    from peftcli.data.rows.streaming import StreamedRows

    rows, plan = session.data.train, session.plan
    if isinstance(rows, StreamedRows):
        return tokens / max(1, session.state.step) * plan.total_steps
    return float(rows.lengths.sum()) * plan.epochs


def _end(session: Session, milestones: Milestones) -> None:
    """Do what follows a run's last step: evaluate, keep the adapter as the best, save."""
    if session.validation:
        _evaluate_largest(session)
        milestones.checkpoints.save_best(session.state.step, {"adapter": session.attachment.state_dict()})
    if session.plan.save_interval:
        milestones.save()


def _evaluate_largest(session: Session) -> None:
    """Evaluate the first batch of the set with the longest row: the order is by length."""
    from peftcli.inference.evaluator import EvaluationStopped

    name, rows = max(session.validation.items(), key=lambda each: int(each[1].lengths.max()))
    answers = iter([False])  # the evaluation asks before each batch whether to stop
    with suppress(EvaluationStopped), session.compute_weights.set_aside():
        session.evaluator({name: rows}, lambda: next(answers, True))


if __name__ == "__main__":
    import_module("peftcli.cli.app").build_app()  # what `peft train` has imported before it reads the recipe
    import_module("peftcli.console.display")
    with TemporaryDirectory() as made:
        answer(lambda: _steps(Path(sys.argv[1]), sys.argv[2:], Path(made)))
