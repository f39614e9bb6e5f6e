"""report.html of a comparison: which method to choose and why, and everything that says so."""

from __future__ import annotations

import json
from collections.abc import Sequence

from peftcli.record.shown_numbers import count, duration
from peftcli.shown_text import escape
from peftcli.studies.compare.comparison import Comparison
from peftcli.studies.report.cost_figures import cost_figures
from peftcli.studies.report.curve_figures import curve_figures, rate_figure
from peftcli.studies.report.methods_table import methods_table
from peftcli.studies.report.shell.html_page import html_page
from peftcli.studies.report.shell.html_parts import Figure, bullets, folded, pairs, plain_table
from peftcli.studies.report.shell.report_numbers import ScoreScale, known
from peftcli.studies.report.standing import Standing, standings

RECORD = "comparison.json"


def comparison_report(comparison: Comparison) -> tuple[str, list[Figure]]:
    """Return the page of a comparison, and its figures for files of their own."""
    scale = ScoreScale(comparison.metric, comparison.greater_is_better)
    ordered = standings(comparison)
    costs, learning = cost_figures(comparison, ordered, scale), curve_figures(comparison, ordered, scale)
    rates = rate_figure(ordered, scale)
    figures = [*costs, *learning, *([rates] if rates is not None else [])]
    title = f"{_methods(len(ordered))} compared on {comparison.data}" if comparison.data else _methods(len(ordered))
    sections = [
        f"<h1>{escape(title)}</h1>",
        _facts(comparison),
        bullets("What differs besides the method", comparison.differs),
        f'<div class="first">{_lead(comparison)}{bullets("What these data cannot decide", comparison.undecided)}</div>',
        bullets("What else to know", comparison.notes),
        "<h2>All methods</h2>",
        methods_table(comparison, ordered, scale),
        _section("Score against cost", costs, _not_measured(comparison, costs)),
        _section("Scores and losses while training", learning, ""),
        _section("Learning rates", [rates] if rates is not None else [], _rates_note(comparison)),
        "<h2>How to read this</h2>",
        pairs(_glossary(comparison, scale)),
        "<h2>How it was measured</h2>",
        pairs(_measured(comparison)),
        _settings(ordered),
    ]
    page = html_page(title, [part for part in sections if part], kicker="peft compare", made_from=RECORD)
    return page, figures


def _methods(number: int) -> str:
    return "1 method" if number == 1 else f"{number} methods"


def _facts(comparison: Comparison) -> str:
    facts = [
        comparison.task.replace("_", " "),
        comparison.model,
        f"{count(comparison.rows)} held-out rows",
        f"{len(comparison.seeds)} seed{'s' if len(comparison.seeds) != 1 else ''}",
        comparison.date,
    ]
    return f'<p class="facts">{"".join(f"<span>{escape(fact)}</span>" for fact in facts if fact)}</p>'


def _lead(comparison: Comparison) -> str:
    sentences = comparison.summary or ["No method of this comparison has a score that says which to choose."]
    paragraphs = "".join(f"<p>{escape(sentence)}</p>" for sentence in sentences)
    return f'<section class="lead" aria-labelledby="short"><h2 id="short">In short</h2>{paragraphs}</section>'


def _section(heading: str, figures: Sequence[Figure], note: str) -> str:
    if not figures and not note:
        return ""
    text = f"<p>{escape(note)}</p>" if note else ""
    return f"<h2>{escape(heading)}</h2>{text}{''.join(one.html() for one in figures)}"


def _not_measured(comparison: Comparison, costs: Sequence[Figure]) -> str:
    """Say which costs have no figure."""
    if not any(known(method.score) for method in comparison.methods):
        return "No method has a score, so there is nothing to draw."
    drawn = {one.name for one in costs}
    names = (("score-by-time", "training time"), ("score-by-memory", "peak memory"))
    lacking = [words for name, words in names if name not in drawn]
    return f"Not measured: {' and '.join(lacking)}." if lacking else ""


def _rates_note(comparison: Comparison) -> str:
    if comparison.searched:
        return "Each method was trained for a few steps at several rates first, and scored at the best."
    return (
        "No rates were searched: every method ran at its default or at the recipe's rate. "
        "A method that looks worse here may need another learning rate."
    )


def _glossary(comparison: Comparison, scale: ScoreScale) -> list[tuple[str, str]]:
    best = (
        "the highest" if comparison.greater_is_better else "the lowest"
    ) + f" mean {scale.name}; with others tied to it, it may be best by chance"
    reference = comparison.reference or ""
    return [
        ("best", best),
        ("tied with the best", "the difference to the best could be chance: its corrected p is 0.05 or more"),
        ("behind by x", "worse than the best by x; the range beside it is the 95% interval of the difference"),
        (
            "not better than the reference",
            f"these rows and seeds do not show that it gains anything over {reference}" if reference else "",
        ),
        (
            "95% interval",
            "over held-out rows (a bootstrap) and, with several seeds, over seeds (a t distribution), for one score or "
            "difference at a time. Scores are rounded to what the interval supports",
        ),
        ("p", "chance of so large a difference if there were none, Holm-corrected for the number of comparisons"),
        ("trained, saved", "numbers that training changes, and those that the adapter file holds"),
        ("frontier", "methods that no other beats in score at the same cost or less"),
    ]


def _measured(comparison: Comparison) -> list[tuple[str, str]]:
    steps = f"{count(comparison.steps)} optimizer steps a run" if comparison.steps is not None else ""
    shortened = (
        comparison.full_steps is not None and comparison.steps is not None and comparison.steps < comparison.full_steps
    )
    if shortened:
        steps += f", shortened from {count(comparison.full_steps or 0)} for all methods alike"
    search = f"{count(comparison.search_steps)} steps a rate" if comparison.search_steps is not None else ""
    return [
        ("command", comparison.command),
        ("data", comparison.data),
        ("model", comparison.model),
        ("reference", comparison.reference or "none"),
        ("seeds", ", ".join(map(str, comparison.seeds))),
        ("length", steps),
        ("rate search", search if comparison.searched else "none"),
        ("budget", duration(comparison.budget_seconds) if comparison.budget_seconds is not None else ""),
        ("all runs together", duration(comparison.seconds) if comparison.seconds else ""),
        ("machine", comparison.machine),
        ("versions", ", ".join(f"{name} {version}" for name, version in comparison.versions.items())),
        ("date", comparison.date),
    ]


def _settings(ordered: Sequence[Standing]) -> str:
    """Return the hyper-parameters and run directories of each method, folded away."""
    rows = [
        [
            one.method.label,
            ", ".join(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in one.method.params.items()),
            ", ".join(one.method.runs),
        ]
        for one in ordered
    ]
    table = plain_table(
        "Hyper-parameters, defaults filled in, and run directories", ["method", "settings", "runs"], rows, texts=3
    )
    return folded("Settings and runs of each method", "Settings and runs of each method", table)
