"""A comparison on the terminal: which to choose, a row a method, what stays open, and where the report is.

Of runs that exist, what differs between them besides the method comes before all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from peftcli.console.output import print_table, print_whole, result_console
from peftcli.shown_text import shown
from peftcli.studies.compare.comparison import Comparison
from peftcli.studies.report.comparison_text import Column, narrow_columns, ordered_methods, wide_columns

WIDE = 150
"""From so many columns on, every value is shown."""
_SPARE = ("time", "trains")
"""What a narrow terminal does without, the first first."""
_STYLES = {"best": "bold green", "tied with the best": "green", "not better than the reference": "yellow"}


def print_comparison(comparison: Comparison, files: Sequence[Path]) -> None:
    """Print the record of a comparison; `files` are what was written."""
    console = result_console()
    print_record(comparison, console)
    console.print()
    for file in files:
        print_whole(console, str(file))


def print_record(comparison: Comparison, console: Console) -> None:
    """Print the summary, the table and the notes; for a pipe the same without colours and lines."""
    if comparison.differs:  # of runs that exist: first what else they differ in
        _print_block(console, "What differs besides the method", comparison.differs)
        console.print()
    for sentence in comparison.summary:
        console.print(Text(shown(sentence)))
    console.print()
    columns = wide_columns(comparison) if console.width >= WIDE else narrow_columns(comparison)
    headings = [column.heading for column in columns]
    spare = None if console.width >= WIDE else [headings.index(name) for name in _SPARE if name in headings]
    print_table(console, _table(comparison, columns), spare)
    for heading, sentences in (("What these data cannot decide", comparison.undecided), ("Notes", comparison.notes)):
        if sentences:
            console.print()
            _print_block(console, heading, sentences)


def _print_block(console: Console, heading: str, sentences: Sequence[str]) -> None:
    console.print(Text(f"{heading}:", style="bold"))
    for sentence in sentences:
        console.print(Text(f"- {shown(sentence)}"))


def _table(comparison: Comparison, columns: Sequence[Column]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(Text(column.heading), justify="right" if column.numbers else "left", overflow="fold")
    for row in ordered_methods(comparison):
        cells = [Text(shown(column.cell(row))) for column in columns]
        table.add_row(*cells, style=_STYLES.get(row.verdict or "", "" if row.verdict else "dim"))
    return table
