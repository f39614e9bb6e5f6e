"""report.html of a sweep: the answer, the winner on fresh seeds, and what each key did."""

from __future__ import annotations

from peftcli.record.shown_numbers import count, duration
from peftcli.shown_text import escape
from peftcli.studies.report.shell.html_page import html_page
from peftcli.studies.report.shell.html_parts import (
    MISSING,
    Cell,
    Column,
    Figure,
    bullets,
    folded,
    number_cell,
    pairs,
    plain_table,
    sortable_table,
    text_cell,
)
from peftcli.studies.report.shell.report_numbers import ScoreScale, known
from peftcli.studies.report.sweep_figures import is_best, sweep_figures
from peftcli.studies.report.sweep_text import searched_keys, value_text
from peftcli.studies.sweep.sweep_record import Sweep, SweepTrial, SweepWinner

RECORD = "sweep.json"


def sweep_report(sweep: Sweep) -> tuple[str, list[Figure]]:
    """Return the page of a sweep, and its figures for files of their own."""
    scale = ScoreScale(sweep.metric, sweep.greater_is_better)
    figures = sweep_figures(sweep, scale)
    title = f"Sweep over {', '.join(sweep.keys)}" if sweep.keys else "Sweep"
    facts = [
        sweep.recipe,
        f"{len(sweep.trials)} trials",
        f"{count(sweep.rows)} held-out rows" if sweep.rows else "",
        sweep.date,
    ]
    sections = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="facts">{"".join(f"<span>{escape(fact)}</span>" for fact in facts if fact)}</p>',
        f'<div class="first">{_lead(sweep, scale)}</div>',
        _winner(sweep, scale),
        _winners(sweep, scale),
        "<h2>Scores by key</h2>" if figures else "",
        *(figure.html() for figure in figures),
        "<h2>All trials</h2>",
        _trials(sweep, scale),
        bullets("What else to know", sweep.notes),
        "<h2>How it was measured</h2>",
        pairs(_measured(sweep)),
    ]
    page = html_page(title, [part for part in sections if part], kicker="peft sweep", made_from=RECORD)
    return page, figures


def _lead(sweep: Sweep, scale: ScoreScale) -> str:
    sentences = [f"{sweep.answer[:1].upper()}{sweep.answer[1:].rstrip('.')}."] if sweep.answer else []
    if sweep.best is None:
        sentences.append("No trial finished, so there is no winner. The table below has each trial's reason.")
    else:
        values = ", ".join(f"{key}={value_text(value)}" for key, value in sweep.best.values.items())
        between = scale.range(sweep.best.interval)
        sentences.append(
            f"The winner, {values}, scores {scale.score(sweep.best.score, sweep.best.interval)} on "
            f"{len(sweep.best.seeds) or len(sweep.best.scores)} fresh seeds"
            + (f" (95% interval {between})." if between else ".")
        )
    paragraphs = "".join(f"<p>{escape(sentence)}</p>" for sentence in sentences)
    return f'<section class="lead" aria-labelledby="short"><h2 id="short">In short</h2>{paragraphs}</section>'


def _winner(sweep: Sweep, scale: ScoreScale) -> str:
    best = sweep.best
    if best is None:
        return ""
    first = [trial.score for trial in sweep.trials if is_best(sweep, trial) and known(trial.score)]
    tiles = [(key, value_text(value)) for key, value in best.values.items()]
    tiles.append(
        (f"{scale.name}, fresh seeds", f"{scale.score(best.score, best.interval)}\n{scale.range(best.interval)}")
    )
    if first:
        tiles.append(
            (f"{scale.name} in the search", f"{scale.score(first[0], best.interval)}\nof one run, chosen for it")
        )
    seeds = best.seeds or list(range(1, len(best.scores) + 1))
    rows = [[f"seed {seed}", f"{score:.10g}"] for seed, score in zip(seeds, best.scores, strict=False)]
    table = plain_table("The winner on fresh seeds", ["run", scale.metric], rows)
    numbers = folded("Score of each fresh seed", "Score of each fresh seed", table) if rows else ""
    recipe = f"<p>The recipe with these values: <code>{escape(best.recipe)}</code></p>" if best.recipe else ""
    return f"<h2>The winner</h2>{pairs(tiles, kind='tiles')}{recipe}{numbers}"


def _winners(sweep: Sweep, scale: ScoreScale) -> str:
    """Return the values that were trained again on fresh seeds, with their verdicts."""
    if not sweep.winners:
        return ""
    best = "descending" if scale.greater_is_better else "ascending"
    keys = searched_keys(sweep)
    columns = [
        Column("Values"),
        Column(scale.name.capitalize(), True, "mean over fresh seeds, with its 95% interval", best),
        Column("Verdict", hint="differences are to the best, with their 95% intervals; p is Holm-corrected"),
        Column("Seeds"),
    ]
    rows = [_winner_cells(one, keys, scale) for one in sweep.winners]
    seeds = ", ".join(map(str, sweep.seeds))
    caption = (
        f"The best values of the search, trained again on fresh seeds ({seeds}): these scores did not choose them."
    )
    return "<h3>Trained again on fresh seeds</h3>" + sortable_table("winners", caption, columns, rows)


def _winner_cells(one: SweepWinner, keys: list[str], scale: ScoreScale) -> list[Cell]:
    values = ", ".join(f"{key}={value_text(one.values[key])}" for key in keys if key in one.values)
    score = Cell(MISSING)
    if known(one.score):
        between = scale.range(one.interval)
        score = Cell(escape(scale.score(one.score, one.interval)) + f"<small>{escape(between)}</small>", one.score)
    verdict = one.verdict or one.reason or ""
    if one.verdict == "behind" and known(one.difference):
        verdict = f"behind by {scale.difference_text(one.difference, one.difference_interval)}"
    return [
        text_cell(values or "the recipe's own"),
        score,
        text_cell(verdict),
        text_cell(", ".join(map(str, one.seeds))),
    ]


def _trials(sweep: Sweep, scale: ScoreScale) -> str:
    best = "descending" if scale.greater_is_better else "ascending"
    numeric = {key: _all_numbers(sweep, key) for key in sweep.keys}
    columns = [
        Column("Trial", sorted="ascending"),
        Column(scale.name.capitalize(), True, "of one run, in the search", best),
        *(Column(key, numeric[key]) for key in sweep.keys),
        Column("State"),
        Column("Run"),
    ]
    rows = [_trial(sweep, trial, numeric, scale) for trial in sweep.trials]
    caption = (
        "Scores of single runs. The search chose the winner by these scores, so the winner's is too good by chance. "
        "Only the winner's score on fresh seeds says what to expect."
    )
    return sortable_table("trials", caption, columns, rows)


def _trial(sweep: Sweep, trial: SweepTrial, numeric: dict[str, bool], scale: ScoreScale) -> list[Cell]:
    state = escape(trial.state) + (f"<small>{escape(trial.reason)}</small>" if trial.reason else "")
    cells = [Cell(f"{trial.number}" + (" \u2190 winner" if is_best(sweep, trial) else ""), trial.number)]
    cells.append(number_cell(trial.score if known(trial.score) else None, scale.score(trial.score)))
    for key, is_number in numeric.items():
        value = trial.values.get(key)
        shown = value_text(value) if key in trial.values else ""
        cells.append(Cell(escape(shown), value) if is_number and shown else text_cell(shown))
    return [*cells, Cell(state, trial.state), text_cell(trial.run)]


def _all_numbers(sweep: Sweep, key: str) -> bool:
    values = [trial.values[key] for trial in sweep.trials if key in trial.values]
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _measured(sweep: Sweep) -> list[tuple[str, str]]:
    return [
        ("command", sweep.command),
        *((key, asked) for key, asked in sweep.keys.items()),
        ("sampler", sweep.sampler),
        ("pruner", sweep.pruner),
        ("all runs together", duration(sweep.seconds) if sweep.seconds else ""),
        ("machine", sweep.machine),
        ("versions", ", ".join(f"{name} {version}" for name, version in sweep.versions.items())),
        ("date", sweep.date),
    ]
