"""`peft estimate --measure`: two real steps in a process of their own, the largest micro-batch in the first of them.

An evaluation comes before them and one after them, as in a run: what the steps left of the heap is not what the first
one found.

Run as `python -m peftcli.analysis.estimate.measured_run RECIPE [KEY=VALUE ...]`; it prints one JSON object.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from peftcli.analysis.estimate.memory_parts import Device, Estimate
from peftcli.errors import UserError

if TYPE_CHECKING:
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
    line = [sys.executable, "-m", "peftcli.analysis.estimate.measured_run", str(recipe), *changes]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode == UserError.exit_code and done.stdout:
        raise UserError(json.loads(done.stdout.strip().splitlines()[-1]))
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it was killed: memory may have run out"])[-1]
        raise UserError(f"the steps could not be measured: {last}", suggestion="estimate without --measure")
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _steps(recipe: Path, changes: Sequence[str], directory: Path) -> dict[str, float]:
    """Evaluate, take two steps and evaluate again, as a run does."""
    from peftcli.analysis.estimate.largest_batches import largest, step_sizes
    from peftcli.analysis.estimate.step_rates import keep_rate
    from peftcli.assembly.recipe_to_train import recipe_to_train, set_allocator
    from peftcli.distributed.devices import peak_memory, pick_device
    from peftcli.distributed.processes import World
    from peftcli.process_state import libraries_quiet
    from peftcli.record.run_directory import RunDirectory
    from peftcli.record.train_state import TrainState
    from peftcli.stop_signals import stop_on_signal
    from peftcli.training.loop import train_steps
    from peftcli.training.milestones import Milestones
    from peftcli.training.setup import build_session
    from peftcli.training.watch.reporting import Silent

    loaded, _ = recipe_to_train(recipe, changes)
    device = pick_device(loaded.recipe.training.device)
    set_allocator(loaded.recipe.training)
    with libraries_quiet():
        world = World(device, loaded.recipe.distributed)
        session = build_session(loaded, world, RunDirectory(directory), Silent(), TrainState())
        milestones, joined = Milestones(session), session.batches.collator.joins_rows
        sizes = step_sizes(session.recipe, session.data.train, session.plan, session.batches.max_tokens, joined)
        index, _ = largest(session.data.train, sizes, joined)
        milestones.evaluate_first()
        started = time.perf_counter()
        with stop_on_signal() as stop, session.compute_weights.in_place():
            other = (index + 1) % max(1, len(sizes))
            taken = [index] if session.plan.total_steps == 1 else [index, other]
            train_steps(session, milestones, (session.batches(step) for step in taken), stop, lambda: None)
            seconds = session.state.step_seconds or time.perf_counter() - started
            if session.validation and session.state.step < session.plan.total_steps:  # else the last step had one
                _evaluate_largest(session)
        tokens = session.state.tokens + session.state.window.get("tokens", 0.0)
    rate = tokens / seconds if seconds else 0.0
    keep_rate(loaded.recipe, device, session.base.identity.shape, bool(session.state.recomputes), rate)
    return {
        "peak_memory_bytes": peak_memory(device),
        "tokens_per_second": rate,
        "tokens": float(session.data.train.lengths.sum()) * session.plan.epochs,
        "recomputes": float(bool(session.state.recomputes)),
    }


def _evaluate_largest(session: Session) -> None:
    """Evaluate the first batch of the set with the longest row: the order is by length."""
    from peftcli.inference.evaluator import EvaluationStopped

    name, rows = max(session.validation.items(), key=lambda each: int(each[1].lengths.max()))
    answers = iter([False])  # the evaluation asks before each batch whether to stop
    with suppress(EvaluationStopped), session.compute_weights.set_aside():
        session.evaluator({name: rows}, lambda: next(answers, True))


if __name__ == "__main__":
    with TemporaryDirectory() as made:
        try:
            print(json.dumps(_steps(Path(sys.argv[1]), sys.argv[2:], Path(made))))
        except UserError as error:
            print(json.dumps(str(error)))  # libraries write on standard error, too
            sys.exit(UserError.exit_code)
