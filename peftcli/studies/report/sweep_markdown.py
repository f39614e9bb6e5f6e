"""`report.md` of a sweep, from its record alone."""

from __future__ import annotations

from peftcli.studies.report.shell.markdown_parts import markdown_table, markdown_text
from peftcli.studies.report.sweep_text import LUCKY, facts, trial_rows, winner_rows
from peftcli.studies.sweep.sweep_record import Sweep


def sweep_markdown(sweep: Sweep) -> str:
    """Return the report: the answer, what was trained again on fresh seeds, all trials, and notes."""
    answer = sweep.answer[:1].upper() + sweep.answer[1:]
    parts = [f"# Sweep of {markdown_text(sweep.recipe)}", f"**{markdown_text(answer)}.**"]
    parts.append("\n".join(f"- {markdown_text(fact)}." for fact in facts(sweep)))
    if sweep.best is not None:
        parts.append(f"The best recipe is `{sweep.best.recipe}`.")
    if sweep.winners:
        parts += [f"## On fresh seeds ({', '.join(map(str, sweep.seeds))})", markdown_table(*winner_rows(sweep))]
    if sweep.trials:
        parts += ["## The search", f"Scores of {LUCKY}.", markdown_table(*trial_rows(sweep))]
    if sweep.notes:
        parts += ["## Notes", "\n".join(f"- {markdown_text(note)}." for note in sweep.notes)]
    where = [text for text in (sweep.machine, sweep.date) if text]
    versions = ", ".join(f"{name} {version}" for name, version in sweep.versions.items())
    parts.append("\n\n".join(markdown_text(text) for text in (sweep.command, ", ".join(where), versions) if text))
    return "\n\n".join(part for part in parts if part) + "\n"
