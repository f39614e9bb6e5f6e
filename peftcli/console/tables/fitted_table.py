"""A table that loses nothing on a narrow terminal without saying so."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from peftcli.console.output import print_table, table

if TYPE_CHECKING:
    from rich.console import Console

_BETWEEN = 3
"""Columns of the terminal between two columns of a table."""


def print_fitted(
    console: Console,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numeric: Iterable[int] = (),
    spare: Sequence[int] = (),
) -> None:
    """Print a table whose cells are never cut or wrapped.

    Where it is wider than the terminal, spare columns are left out, and a line below names them. Where it is too wide
    without them, each row is printed by itself, a line for each of its cells. Columns without any value are left out.

    Args:
        columns: headings.
        rows: cells, already formatted; the first cell names its row.
        numeric: indices of the columns that align right.
        spare: indices of the columns to leave out, the first ones first.
    """
    from rich.cells import cell_len

    widths = [max(map(cell_len, cells)) for cells in zip(columns, *rows, strict=True)]
    filled = [place for place in range(len(columns)) if any(row[place] for row in rows)]
    left_out = [place for place in spare if place in filled]
    for count in range(len(left_out) + 1):
        kept = [place for place in filled if place not in left_out[:count]]
        width = sum(widths[place] for place in kept) + _BETWEEN * (len(kept) - 1)
        if not console.is_terminal:
            console.width = max(console.width, width)  # nobody's screen
        if width <= console.width:
            shown = [[row[place] for place in kept] for row in rows]
            numbers = [at for at, place in enumerate(kept) if place in set(numeric)]
            print_table(console, table([columns[place] for place in kept], shown, numeric=numbers))
            if count:
                names = ", ".join(columns[place] for place in filled if place not in kept)
                console.print(f"left out for lack of width: {names}; --json has all", style="dim", markup=False)
            return
    label = max(len(columns[place]) for place in filled)
    for row in rows:
        console.print(row[0], style="bold", markup=False, soft_wrap=True)
        for place in filled[1:]:
            if row[place]:
                console.print(f"  {columns[place]:<{label}}  {row[place]}", markup=False, soft_wrap=True)
