"""`report.md` of a sweep, from its record alone."""

from __future__ import annotations

from collections.abc import Sequence

from peftcli.studies.report.sweep_text import LUCKY, facts, trial_rows, winner_rows
from peftcli.studies.sweep.sweep_record import Sweep


def sweep_markdown(sweep: Sweep) -> str:
    """Return the report: the answer, what was trained again on fresh seeds, all trials, and notes."""
    parts = [f"# Sweep of {_escaped(sweep.recipe)}", f"**{_escaped(sweep.answer[:1].upper() + sweep.answer[1:])}.**"]
    parts.append("\n".join(f"- {_escaped(fact)}." for fact in facts(sweep)))
    if sweep.best is not None:
        parts.append(f"The best recipe is `{sweep.best.recipe}`.")
    if sweep.winners:
        parts += [f"## On fresh seeds ({', '.join(map(str, sweep.seeds))})", _table(*winner_rows(sweep))]
    if sweep.trials:
        parts += ["## The search", f"Scores of {LUCKY}.", _table(*trial_rows(sweep))]
    if sweep.notes:
        parts += ["## Notes", "\n".join(f"- {_escaped(note)}." for note in sweep.notes)]
    where = [text for text in (sweep.machine, sweep.date) if text]
    versions = ", ".join(f"{name} {version}" for name, version in sweep.versions.items())
    parts.append("\n\n".join(_escaped(text) for text in (sweep.command, ", ".join(where), versions) if text))
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(_escaped(cell) for cell in line)} |" for line in lines)


def _escaped(text: str) -> str:
    """Return text that Markdown shows as it is, in one line, also within a table."""
    for letter in "\\`*|<>[]":
        text = text.replace(letter, f"\\{letter}")
    return " ".join(text.split())
