"""Printing results: one JSON document or a table on standard output; everything else goes to standard error."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from peftcli.console.terminal import data_stream, safe_console
from peftcli.shown_text import without_secrets

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def print_json(document: Any) -> None:
    """Print one JSON document on standard output; NaN and infinities, which JSON lacks, become null."""
    text = json.dumps(_plain(document), indent=2, allow_nan=False, ensure_ascii=not _utf8())
    print(without_secrets(text), file=data_stream())


def json_line(row: Mapping[str, Any]) -> str:
    """Return one line of JSON Lines, without the line feed."""
    return json.dumps(_plain(row), allow_nan=False, ensure_ascii=False)


def result_console() -> Console:
    """Return a console on standard output; without a terminal it never wraps or colours."""
    terminal = sys.stdout.isatty()
    return safe_console(width=None if terminal else 160, soft_wrap=not terminal)


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
    right = set(numeric)
    for index, heading in enumerate(columns):
        made.add_column(heading, justify="right" if index in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*map(Text, row))  # Text: brackets in a cell are no markup
    return made


def print_table(console: Console, made: Table) -> None:
    """Print a table; into a file or pipe without the spaces that fill the last column."""
    if console.is_terminal:
        console.print(made)
        return
    with console.capture() as drawn:
        console.print(made)
    for line in drawn.get().splitlines():
        print(line.rstrip(), file=console.file)


def count(number: int) -> str:
    """Return a count for reading: 22,713,221."""
    return f"{number:,}"


def short_count(number: int) -> str:
    """Return a count in at most five characters: 812, 149.4K, 22.7M, 1.2B."""
    size = float(number)
    for unit in ("", "K", "M", "B"):
        if size < 1000 or unit == "B":
            return f"{size:.1f}{unit}" if unit else str(number)
        size /= 1000
    return str(number)


def byte_size(number: float) -> str:
    """Return a size for reading: 612 B, 1.2 MB; powers of 1000, as disks count."""
    for unit in ("B", "KB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


def duration(seconds: float) -> str:
    """Return a time for reading: 8 s, 1 min 12 s, 2 h 05 min."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def metric(name: str, value: Any) -> str:
    """Return a metric for reading: shares as percentages, everything else to four digits."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or abs(value) > sys.float_info.max:
        return str(value)
    if any(part in name for part in ("accuracy", "f1", "precision", "recall", "exact_match")) and 0 <= value <= 1:
        return f"{100 * value:.1f}%"
    return f"{value:.4g}"


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
