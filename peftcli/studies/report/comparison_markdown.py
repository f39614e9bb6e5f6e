"""`report.md` of a comparison, from its record alone."""

from __future__ import annotations

from collections.abc import Sequence

from peftcli.studies.compare.comparison import Comparison
from peftcli.studies.report.comparison_text import Column, measured, ordered_methods, wide_columns


def comparison_markdown(comparison: Comparison) -> str:
    """Return the report: the summary, the table, what differs, notes, what stays open, how it was measured."""
    parts = [f"# {len(comparison.methods)} methods compared", *map(_escaped, comparison.summary)]
    parts += ["## The methods", _table(comparison, wide_columns(comparison))]
    sections = (
        ("What these data cannot decide", comparison.undecided),
        ("What differs besides the method", comparison.differs),
        ("Notes", comparison.notes),
        ("How it was measured", measured(comparison)),
    )
    for heading, sentences in sections:
        if sentences:
            parts += [f"## {heading}", "\n".join(f"- {_escaped(sentence)}" for sentence in sentences)]
    if comparison.command:
        parts.append(f"```\n{' '.join(comparison.command.replace('```', '').split())}\n```")
    return "\n\n".join(parts) + "\n"


def _table(comparison: Comparison, columns: Sequence[Column]) -> str:
    lines = [[column.heading for column in columns], ["---:" if column.numbers else "---" for column in columns]]
    lines += [[_escaped(column.cell(row)) for column in columns] for row in ordered_methods(comparison)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escaped(text: str) -> str:
    """Return text on one line in which nothing is taken for markup."""
    line = " ".join(text.split())
    for mark in "\\`*_|<[":
        line = line.replace(mark, f"\\{mark}")
    return line
