"""A comparison in the terminal: which to choose, a row a method, and what stays open."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from peftcli.shown_text import shown
from peftcli.studies.compare.comparison import Comparison
from peftcli.studies.report.comparison_text import narrow_columns, ordered_methods, wide_columns

WIDE = 150
"""From so many columns on, every value is shown."""
_STYLES = {"best": "bold green", "tied with the best": "green", "not better than the reference": "yellow"}


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print the summary, the table and the notes; for a pipe the same without colours and lines."""
    for sentence in comparison.summary:
        console.print(Text(shown(sentence)))
    console.print()
    console.print(comparison_table(comparison, console.width))
    blocks = (
        ("What these data cannot decide", comparison.undecided),
        ("What differs besides the method", comparison.differs),
        ("Notes", comparison.notes),
    )
    for heading, sentences in blocks:
        if sentences:
            console.print()
            console.print(Text(f"{heading}:", style="bold"))
            for sentence in sentences:
                console.print(Text(f"- {shown(sentence)}"))


def comparison_table(comparison: Comparison, width: int) -> Table:
    """Return the table for a terminal of so many characters."""
    columns = wide_columns(comparison) if width >= WIDE else narrow_columns(comparison)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        whole = column.heading == "method"
        table.add_column(column.heading, justify="right" if column.numbers else "left", no_wrap=whole, overflow="fold")
    for row in ordered_methods(comparison):
        cells = [Text(shown(column.cell(row))) for column in columns]
        table.add_row(*cells, style=_STYLES.get(row.verdict or "", "" if row.verdict else "dim"))
    return table
