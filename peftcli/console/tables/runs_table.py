"""Runs as a table, or one below the other where the terminal is too narrow for one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from peftcli.console.output import print_table, table
from peftcli.record.shown_numbers import byte_size, duration, metric, short_count

if TYPE_CHECKING:
    from rich.console import Console

    from peftcli.record.listing.find_runs import StudyEntry
    from peftcli.record.listing.run_entry import RunEntry

COLUMNS = ("run", "state", "method", "score", "trained", "size", "time", "age", "task")
_SPARE = (8, 7, 6, 5, 4)
"""Columns that a narrow terminal does without, the first ones first."""


def print_runs(runs: Sequence[RunEntry], studies: Sequence[StudyEntry], directory: Path, console: Console) -> None:
    """Print a line for each run and each study, and below them why runs failed or are damaged.

    Args:
        directory: below which they were found: their names are shown relative to it.
    """
    lines = [(run.changed, _run_cells(run, directory)) for run in runs]
    lines += [(study.changed, _study_cells(study, directory)) for study in studies]
    if not lines:
        return
    lines.sort(key=lambda line: -line[0])
    rows = [cells for _, cells in lines]
    print_table(console, table(COLUMNS, rows, numeric=(3, 4, 5, 6, 7)), _SPARE)
    for run in runs:
        if run.reason is not None:
            console.print(f"{_name(run.path, directory)}: {run.state}: {run.reason}", markup=False)


def _run_cells(run: RunEntry, directory: Path) -> list[str]:
    state: str = run.state
    if state not in ("finished", "imported") and run.step:
        state = f"{state} at {run.step:,}" + (f"/{run.steps:,}" if run.steps else "")
    score = "" if run.score is None or run.metric is None else _score(run.metric, run.score)
    return [
        _name(run.path, directory),
        state,
        run.method or "",
        score,
        "" if run.trained is None else short_count(run.trained),
        byte_size(run.size),
        "" if run.seconds is None else duration(run.seconds),
        _age(run.changed),
        run.task or "",
    ]


def _study_cells(study: StudyEntry, directory: Path) -> list[str]:
    trials = f"{study.ended} of {study.trials} trials ended"
    return [_name(study.path, directory), trials, "study", "", "", "", "", _age(study.changed), ""]


def _name(path: str, directory: Path) -> str:
    """Return a run's path as its directory's below; that of the directory itself as it was typed."""
    try:
        inside = Path(path).relative_to(directory)
    except ValueError:
        return path
    return path if str(inside) == "." else str(inside)


def _score(name: str, value: float) -> str:
    return f"{name.removeprefix('eval_')} {metric(name, value)}"


def _age(changed: float) -> str:
    """Return how long ago something was, in one unit: 8 s, 12 min, 5 h, 3 d."""
    seconds = max(0.0, time.time() - changed)
    for unit, size, most in (("s", 1, 60), ("min", 60, 60), ("h", 3600, 24)):
        if seconds < size * most:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:.0f} d" if changed else ""
