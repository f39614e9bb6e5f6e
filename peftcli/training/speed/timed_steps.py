"""The first steps of a run by the clock, in a process of their own: see `compile_trial`.

Run as `python -m peftcli.training.speed.timed_steps RECIPE [KEY=VALUE ...]`; it prints a list of [tokens, seconds].
"""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

from peftcli.assembly.recipe_to_train import recipe_to_train, set_allocator
from peftcli.process_state import large_imports, libraries_quiet
from peftcli.stop_signals import stop_on_signal
from peftcli.training.speed.own_process import answer

with large_imports():
    from peftcli.training.loop import train_steps
    from peftcli.training.milestones import Milestones
    from peftcli.training.run import started
    from peftcli.training.session import Session

PLAIN_STEPS, COMPILED_STEPS = 5, 7
"""Steps that are taken. Blocks are compiled again for other lengths, in the second step at the latest."""


def _steps(recipe: Path, changes: list[str]) -> list[tuple[float, float]]:
    """Take the first steps of a run; return (tokens, seconds) of each."""
    loaded, _ = recipe_to_train(recipe, changes)
    set_allocator(loaded.recipe.training)
    directory = Path(loaded.recipe.output_dir or recipe.parent / "run")
    with libraries_quiet(), started(loaded, directory) as (session, milestones):
        return _timed(session, milestones, COMPILED_STEPS if loaded.recipe.training.torch_compile else PLAIN_STEPS)


def _timed(session: Session, milestones: Milestones, count: int) -> list[tuple[float, float]]:
    state, totals = session.state, [(0.0, 0.0)]

    def after_step() -> None:
        milestones.meter.settle()
        totals.append((state.tokens + state.window.get("tokens", 0.0), state.step_seconds))

    with stop_on_signal() as stop, session.compute_weights.in_place():
        train_steps(session, milestones, (session.batches(step) for step in range(count)), stop, after_step)
    return [(then[0] - before[0], then[1] - before[1]) for before, then in pairwise(totals)]


if __name__ == "__main__":
    answer(lambda: _steps(Path(sys.argv[1]), sys.argv[2:]))
