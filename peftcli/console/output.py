"""Printing results: one JSON document or a table on standard output; everything else goes to standard error."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from peftcli.console.tables.fitted_table import print_fitted
from peftcli.console.terminal import data_stream, safe_console
from peftcli.shown_text import without_secrets

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


_ENDLESS = 10**6
"""Columns of what has no right edge: a file or a pipe."""


def print_json(document: Any) -> None:
    """Print one JSON document on standard output; NaN and infinities, which JSON lacks, become null."""
    text = json.dumps(_plain(document), indent=2, allow_nan=False, ensure_ascii=not _utf8())
    print(without_secrets(text), file=data_stream())


def json_line(row: Mapping[str, Any]) -> str:
    """Return one line of JSON Lines, without the line feed."""
    return json.dumps(_plain(row), allow_nan=False, ensure_ascii=False, default=str)


def result_console() -> Console:
    """Return a console on standard output; without a terminal it never wraps or colours."""
    terminal = sys.stdout.isatty()
    return safe_console(width=None if terminal else 160, soft_wrap=not terminal)


def print_whole(console: Console, line: str) -> None:
    """Print a line that people copy: a path, a command, YAML. Only the terminal itself parts it."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, numeric: Iterable[int] = ()) -> Table:
    """Return a plain table.

    Args:
        columns: headings.
        rows: cells, already formatted.
        numeric: indices of the columns that align right.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    right = set(numeric)  # Text below: brackets in headings and cells are no markup
    for index, heading in enumerate(columns):
        made.add_column(Text(heading), justify="right" if index in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*map(Text, row))
    return made


def print_table(console: Console, made: Table, spare: Sequence[int] | None = None) -> None:
    """Print a table: fitted to a terminal; into a file or pipe a line a row, however long, without spaces at its end.

    Args:
        spare: indices of the columns that a narrow terminal does without, the first ones first; None is the last ones.
    """
    if console.is_terminal:
        print_fitted(console, made, spare)
        return
    from rich.measure import Measurement

    width = console.width
    console.width = max(width, Measurement.get(console, console.options.update(max_width=_ENDLESS), made).maximum)
    with console.capture() as drawn:
        console.print(made)
    console.width = width
    for line in drawn.get().splitlines():
        print(line.rstrip(), file=console.file)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _utf8() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
