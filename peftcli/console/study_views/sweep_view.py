"""A sweep on the terminal: its answer, the values on fresh seeds, the trials, and what to type next."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from peftcli.console.output import print_table, print_whole, result_console, table
from peftcli.studies.report.sweep_text import LUCKY, facts, trial_rows, winner_rows
from peftcli.studies.sweep.sweep_record import Sweep


def print_sweep(sweep: Sweep, directory: Path) -> None:
    """Print the record of a sweep; `directory` is the study's."""
    console = result_console()
    console.print(f"the search: {LUCKY}", markup=False)
    _print_trials(sweep, console)
    console.print()
    if sweep.winners:
        headings, rows = winner_rows(sweep)
        console.print(f"on fresh seeds ({', '.join(map(str, sweep.seeds))})", markup=False)
        score, interval, seeds = (len(headings) - place for place in (4, 3, 2))  # the verdict stays
        print_table(console, table(_short(headings), rows, numeric=[score]), spare=[seeds, interval])
        console.print()
    for fact in (*facts(sweep), *(f"note: {note}" for note in sweep.notes)):
        console.print(fact, markup=False, highlight=False)
    console.print()
    console.print(sweep.answer, markup=False, highlight=False)
    print_whole(console, f"report     {directory / 'report.html'}")
    if sweep.best is not None:
        console.print("\nnext")
        print_whole(console, f"  peft train {shlex.quote(str(directory / sweep.best.recipe))}")


def _print_trials(sweep: Sweep, console: Console) -> None:
    """Print a row a trial, and below them why trials did not finish: each reason once, for all that share it."""
    headings, rows = trial_rows(sweep)
    reasons: dict[str, list[str]] = {}
    for row in rows:
        state, _, reason = row[-1].partition(": ")
        if reason:
            reasons.setdefault(row[-1], []).append(row[0])
            row[-1] = state
    print_table(console, table(_short(headings), rows, numeric=[0, len(headings) - 2]))
    for reason, trials in reasons.items():
        console.print(f"{', '.join(trials)} {reason}", markup=False, highlight=False)


def _short(headings: Sequence[str]) -> list[str]:
    """Return headings without the block of a key, `r` for `method.r`, where each still says which key it is."""
    last = [heading.rpartition(".")[2] for heading in headings]
    return [short if last.count(short) == 1 else heading for short, heading in zip(last, headings, strict=True)]
