"""What became of each key of a converted configuration: what needs a decision first, a line or two for each key."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from peftcli.starting.convert.conversion import Conversion, Outcome, State
from peftcli.starting.convert.converted_recipe import place

if TYPE_CHECKING:
    from rich.console import Console

_HEADS: tuple[tuple[State, str], ...] = (
    ("translated", "translated"),
    ("default", "written out, because this tool's default differs"),
    ("dropped", "dropped: not needed in a recipe"),
    ("decide", "to decide: there is no counterpart here"),
)


def print_outcomes(console: Console, work: Conversion) -> None:
    """Print the keys by what became of them; those to decide come last, where they are read."""
    width = min(console.width, 120)
    lines = [f"{work.file} is a configuration of {work.tool}"]
    for state, head in _HEADS:
        found = work.of(state)
        if found:
            lines += ["", f"{len(found)} {head}"]
            for one in found:
                told = _told(one, work.file)
                lines += textwrap.wrap(
                    told, width, initial_indent="  ", subsequent_indent="      ", break_on_hyphens=False
                )
    if empty := work.of("empty"):
        text = f"{len(empty)} without a value: {', '.join(one.key for one in empty)}"
        lines += ["", *textwrap.wrap(text, width, subsequent_indent="  ", break_on_hyphens=False)]
    for line in lines:
        console.print(line, markup=False, highlight=False)


def _told(one: Outcome, file: str) -> str:
    """Return one key: where it is, in `file` the line alone, what it is here, and why."""
    if one.state == "default":
        return f"{one.ours}: {one.value}"
    ours = f" -> {one.ours}" if one.ours and one.state == "translated" else ""
    note = f": {one.note}" if one.note else ""
    where = f"line {one.line}" if one.file == file and one.line is not None else place(one)
    return f"{where}: {one.key}{ours}{note}"
