"""A comparison on the terminal: which to choose, its table, what stays open, and where the report is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from peftcli.console.output import result_console
from peftcli.studies.compare.comparison import Comparison
from peftcli.studies.report.comparison_table import print_comparison as print_record


def print_comparison(comparison: Comparison, files: Sequence[Path]) -> None:
    """Print the record of a comparison; `files` are what was written."""
    console = result_console()
    print_record(comparison, console)
    console.print()
    for file in files:
        console.print(str(file), markup=False, highlight=False)
