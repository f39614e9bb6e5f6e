"""A table that loses nothing on a narrow terminal: where its lines do not fit, each row becomes a few lines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from peftcli.console.output import print_table, table

if TYPE_CHECKING:
    from rich.console import Console

_BETWEEN = 2
"""Columns of the terminal between two columns of a table."""


def print_fitted(
    console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]], *, numeric: Iterable[int] = ()
) -> None:
    """Print a table; where it is wider than the terminal, each row by itself, with the names of its columns.

    Args:
        columns: headings.
        rows: cells, already formatted; the first cell names its row.
        numeric: indices of the columns that align right.
    """
    from rich.cells import cell_len

    widths = [max(map(cell_len, cells)) for cells in zip(columns, *rows, strict=True)]
    filled = [place for place in range(len(columns)) if any(row[place] for row in rows)]
    width = sum(widths[place] for place in filled) + _BETWEEN * (len(filled) - 1)
    if not console.is_terminal or width <= console.width:
        right = set(numeric)
        shown = [[row[place] for place in filled] for row in rows]
        numbers = [at for at, place in enumerate(filled) if place in right]
        print_table(console, table([columns[place] for place in filled], shown, numeric=numbers))
        return
    label = max(len(columns[place]) for place in filled)
    for row in rows:
        console.print(row[0], style="bold", markup=False)
        for place in filled[1:]:
            if row[place]:
                console.print(f"  {columns[place]:<{label}}  {row[place]}", markup=False)
