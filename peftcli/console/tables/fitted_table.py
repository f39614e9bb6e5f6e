"""A table that fits a terminal: numbers and names are never parted, and nothing is lost without saying so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from peftcli.console.terminal import wrapped

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Column, Table

_PROSE = 24
"""Columns of the terminal that are enough for a column of sentences: they part between words."""
_ALWAYS = 3
"""Columns of a table, from its first, that are only left out all together."""


def print_fitted(console: Console, made: Table, spare: Sequence[int] | None = None) -> None:
    """Print a table on a terminal.

    Columns of sentences are made narrower first. Then columns are left out, and a line below names them. Where it is
    too wide even so, each row is printed by itself, a line for each of its cells.

    Args:
        made: its cells are plain texts.
        spare: indices of the columns to leave out, the first ones first; None is from the last one to the fourth.
    """
    between = _between(made)
    headings = [str(column.header) for column in made.columns]
    cells = [[str(cell) for cell in column.cells] for column in made.columns]
    least = [_least(heading, texts) for heading, texts in zip(headings, cells, strict=True)]
    places = list(range(len(headings)))
    left_out = list(reversed(places[_ALWAYS:])) if spare is None else list(spare)
    for count in range(len(left_out) + 1):
        kept = [place for place in places if place not in left_out[:count]]
        if sum(least[place] for place in kept) + between * (len(kept) - 1) <= console.width:
            _print_columns(console, made, kept, least, cells)
            if count:
                names = ", ".join(headings[place] for place in places if place not in kept)
                text = f"columns that do not fit: {names}; a wider terminal or --json shows them"
                console.print(text, style="dim", markup=False)
            return
    _print_rows(console, headings, cells)


def _between(made: Table) -> int:
    """Return the columns of the terminal between two columns of a table: spaces, and a line where there is a box."""
    return 2 if made.box is None else 3


def _least(heading: str, texts: Sequence[str]) -> int:
    """Return the columns of the terminal that a column of a table needs."""
    from rich.cells import cell_len

    lines = [line for text in texts for line in text.split("\n")]
    widest = max(map(cell_len, lines), default=0)
    if widest > _PROSE and any(" " in line for line in lines if cell_len(line) > _PROSE):
        widest = max(_PROSE, *(cell_len(word) for line in lines for word in line.split()))
    return max(widest, *(cell_len(word) for word in heading.split()), 1)


def _print_columns(
    console: Console, made: Table, kept: Sequence[int], least: Sequence[int], cells: Sequence[Sequence[str]]
) -> None:
    """Print some columns; what is left of the width goes to those whose cells would part."""
    from rich.cells import cell_len

    room = console.width - sum(least[place] for place in kept) - _between(made) * (len(kept) - 1)
    columns: list[Column] = []
    for place in kept:
        column = made.columns[place]
        texts = [str(column.header), *cells[place]]
        more = min(room, max(cell_len(line) for text in texts for line in text.split("\n")) - least[place])
        column.width, room = least[place] + max(more, 0), room - max(more, 0)
        column._index = len(columns)  # rich keeps a column's place in it
        columns.append(column)
    made.columns = columns
    console.print(made)


def _print_rows(console: Console, headings: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    label = max(map(len, headings))
    for row in zip(*cells, strict=True):
        console.print(row[0], style="bold", markup=False, soft_wrap=True)
        for heading, cell in zip(headings[1:], row[1:], strict=True):
            if cell:
                lines = wrapped(cell, max(console.width - label - 4, 1)).replace("\n", "\n" + " " * (label + 4))
                console.print(f"  {heading:<{label}}  {lines}", markup=False, soft_wrap=True)
