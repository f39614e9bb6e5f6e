"""`report.md` of a comparison, from its record alone."""

from __future__ import annotations

from collections.abc import Sequence

from peftcli.studies.compare.comparison import Comparison
from peftcli.studies.report.comparison_text import Column, measured, ordered_methods, wide_columns
from peftcli.studies.report.shell.markdown_parts import markdown_table, markdown_text


def comparison_markdown(comparison: Comparison) -> str:
    """Return the report: what else differs, the summary, the table, what stays open, notes, how it was measured."""
    parts = [f"# {len(comparison.methods)} methods compared"]
    parts += _section("What differs besides the method", comparison.differs)
    parts += [*(["## In short"] if comparison.differs else []), *map(markdown_text, comparison.summary)]
    parts += ["## The methods", _table(comparison, wide_columns(comparison))]
    sections = (
        ("What these data cannot decide", comparison.undecided),
        ("Notes", comparison.notes),
        ("How it was measured", measured(comparison)),
    )
    for heading, sentences in sections:
        parts += _section(heading, sentences)
    if comparison.command:
        parts.append(f"```\n{' '.join(comparison.command.replace('```', '').split())}\n```")
    return "\n\n".join(parts) + "\n"


def _section(heading: str, sentences: Sequence[str]) -> list[str]:
    return [f"## {heading}", "\n".join(f"- {markdown_text(each)}" for each in sentences)] if sentences else []


def _table(comparison: Comparison, columns: Sequence[Column]) -> str:
    rows = [[column.cell(row) for column in columns] for row in ordered_methods(comparison)]
    headings, numbers = [column.heading for column in columns], [column.numbers for column in columns]
    return markdown_table(headings, rows, numbers=numbers)
