"""A sweep on the terminal: its answer, the values on fresh seeds, the trials, and what to type next."""

from __future__ import annotations

from pathlib import Path

from peftcli.console.output import print_table, result_console, table
from peftcli.studies.report.sweep_text import LUCKY, facts, trial_rows, winner_rows
from peftcli.studies.sweep.sweep_record import Sweep


def print_sweep(sweep: Sweep, directory: Path) -> None:
    """Print the record of a sweep; `directory` is the study's."""
    console = result_console()
    headings, rows = trial_rows(sweep)
    console.print(f"the search: {LUCKY}", markup=False)
    print_table(console, table(headings, rows, numeric=[0, len(headings) - 2]))
    console.print()
    if sweep.winners:
        headings, rows = winner_rows(sweep)
        console.print(f"on fresh seeds ({', '.join(map(str, sweep.seeds))})", markup=False)
        print_table(console, table(headings, rows, numeric=[len(headings) - 4]))
        console.print()
    for fact in (*facts(sweep), *(f"note: {note}" for note in sweep.notes)):
        console.print(fact, markup=False, highlight=False)
    console.print()
    console.print(sweep.answer, markup=False, highlight=False)
    console.print(f"report     {directory / 'report.html'}", markup=False, highlight=False)
    if sweep.best is not None:
        console.print("\nnext")
        console.print(f"  peft train {directory / sweep.best.recipe}", markup=False, highlight=False)
