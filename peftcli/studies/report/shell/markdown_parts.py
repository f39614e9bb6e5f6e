"""The parts that reports in Markdown are made of: text that is no markup, and tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown_text(text: str) -> str:
    """Return text on one line in which nothing is taken for markup, also within a table."""
    line = " ".join(text.split())
    for mark in "\\`*_|<>[]":
        line = line.replace(mark, f"\\{mark}")
    return line


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Sequence[bool] = ()) -> str:
    """Return a table of texts, which are escaped.

    Args:
        headings: one a column.
        rows: a text a column.
        numbers: of each column, whether it is put to the right; none is by default.
    """
    rule = ["---:" if number else "---" for number in numbers or [False] * len(headings)]
    lines = [[*map(markdown_text, headings)], rule, *([*map(markdown_text, row)] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
