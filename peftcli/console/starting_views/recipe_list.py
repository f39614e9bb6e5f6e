"""The table of the shipped recipes: a row of short facts and below it the purpose, in any width."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from peftcli.starting.shipped_recipes import ShippedRecipe

if TYPE_CHECKING:
    from rich.console import Console

_HEADINGS = ("recipe", "model", "method", "memory")
_GAP = 2


def print_recipes(console: Console, recipes: Sequence[ShippedRecipe]) -> None:
    """Print the recipes by task; where the columns do not fit, the facts of each stand below one another."""
    width = min(console.width, 120)
    rows = {one: (one.name, one.model.rpartition("/")[2], one.method, one.memory) for one in recipes}
    widths = [max(map(len, cells)) for cells in zip(_HEADINGS, *rows.values(), strict=True)]
    columns = widths if sum(widths) + _GAP * (len(widths) - 1) <= width else None
    lines: list[str] = [] if columns is None else [_row(_HEADINGS, columns)]
    for task, group in groupby(recipes, key=lambda one: one.task):
        lines += ["", f"task: {task}"]
        for one in group:
            facts = _wrapped(", ".join(rows[one][1:]), width)
            lines += [one.name, *facts] if columns is None else [_row(rows[one], columns)]
            lines += _wrapped(one.purpose, width)
    lines += [
        "",
        *textwrap.wrap("peft recipes show NAME prints one, peft recipes copy NAME writes it to a file.", width),
    ]
    for line in lines:
        console.print(line, markup=False, highlight=False, style="bold" if line.startswith("task: ") else None)


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "".join(cell.ljust(width + _GAP) for cell, width in zip(cells, widths, strict=True)).rstrip()


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False)
