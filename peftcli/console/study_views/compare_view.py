"""A comparison on the terminal: its table, what to choose, and where the report is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from peftcli.console.output import print_table, result_console, table
from peftcli.record.shown_numbers import metric
from peftcli.studies.compare.comparison import Comparison


def print_comparison(comparison: Comparison, files: Sequence[Path]) -> None:
    """Print the record of a comparison; `files` are what was written."""
    console = result_console()
    rows = [
        [row.label, f"{row.rate:g}" if row.rate else "", metric(comparison.metric, row.score), row.reason or ""]
        for row in comparison.methods
    ]
    print_table(console, table(["method", "rate", comparison.metric, ""], rows, numeric=(1, 2)))
    for note in comparison.notes:
        console.print(f"note: {note}", markup=False, highlight=False)
    for file in files:
        console.print(str(file), markup=False, highlight=False)
