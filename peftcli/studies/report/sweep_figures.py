"""The figures of a sweep: score against each key, the keys' importance, and the scores of all trials in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from peftcli.record.charts.bar_chart import bars
from peftcli.record.charts.chart_axis import Axis, category_axis, linear_axis, log_axis, short_number
from peftcli.record.charts.plot_area import Level
from peftcli.record.charts.scatter_chart import Mark, scatter
from peftcli.studies.report.cost_figures import SIZES
from peftcli.studies.report.shell.html_parts import Figure, plain_table
from peftcli.studies.report.shell.report_numbers import ScoreScale, known
from peftcli.studies.report.standing import sign
from peftcli.studies.report.sweep_text import sorted_shares, value_text
from peftcli.studies.sweep.sweep_record import Sweep, SweepTrial

KINDS = {"finished": "tied"}
"""State of a trial -> kind of its mark; others are drawn as `behind`."""

_BEST = "best"
_FEW = 8
"""Up to so many different values are written on the axis themselves."""

_GEOMETRIC = 1.5
"""Values of a grid that grow by a factor of at least this are drawn by ratio."""


def sweep_figures(sweep: Sweep, scale: ScoreScale) -> list[Figure]:
    """Return the figures that the trials have values for."""
    scored = [trial for trial in sweep.trials if known(trial.score)]
    found = [
        figure for index, key in enumerate(sweep.keys) if (figure := _key_figure(sweep, key, index, scored, scale))
    ]
    if sweep.importance:
        found.insert(0, _importance(sweep))
    if len(scored) > 1:
        found.append(_progress(sweep, scored, scale))
    return found


def is_best(sweep: Sweep, trial: SweepTrial) -> bool:
    """Return whether a trial has the winner's values."""
    return sweep.best is not None and trial.values == sweep.best.values


def _key_figure(sweep: Sweep, key: str, index: int, scored: Sequence[SweepTrial], scale: ScoreScale) -> Figure | None:
    shown = [trial for trial in scored if key in trial.values]
    if not shown:
        return None
    values = [trial.values[key] for trial in shown]
    axis, places = _value_axis(key, sweep.keys[key], values)
    marks = [_mark(sweep, trial, place, scale) for trial, place in zip(shown, places, strict=True)]
    level, y = _fresh_level(sweep, scale), linear_axis(scale.title, _heights(sweep, marks, scale))
    title = f"{scale.name} against {key}"
    share = f", importance {sweep.importance[key]:.0%}" if key in sweep.importance else ""
    description = f"{len(marks)} trials over {key}{share}. The numbers are in the table below the figure."
    made = {
        kind: scatter(title, description, marks, axis, y, size=(size[0], size[1] * 0.8), levels=level)
        for kind, size in SIZES.items()
    }
    rows = [[str(trial.number), value_text(trial.values[key]), trial.state, f"{trial.score:.10g}"] for trial in shown]
    return Figure(
        f"score-by-key-{index + 1}",
        f"{title[0].upper()}{title[1:]}{share}",
        {kind: one.drawing for kind, one in made.items()},
        _caption(sweep, key),
        plain_table(title, ["trial", key, "state", scale.metric], rows, texts=3),
        _legend(sweep, shown),
    )


def _value_axis(key: str, asked: str, values: Sequence[Any]) -> tuple[Axis, list[float]]:
    """Return the axis of a key, and where each value lies on it: numbers by size, everything else by name."""
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) == len(values):
        by_ratio = min(numbers) > 0 and (asked.startswith("log:") or _grows_by_ratio(sorted(set(numbers))))
        axis = log_axis(key, numbers) if by_ratio else linear_axis(key, numbers)
        if len(set(numbers)) <= _FEW:
            axis = replace(axis, ticks=tuple((number, short_number(number)) for number in sorted(set(numbers))))
        return axis, [float(number) for number in numbers]
    names = sorted({value_text(value) for value in values}, key=lambda name: (_position(asked, name), name))
    return category_axis(key, names), [float(names.index(value_text(value))) for value in values]


def _position(asked: str, name: str) -> int:
    """Return where a name stands in what was asked for."""
    found = asked.find(name)
    return found if found >= 0 else len(asked)


def _grows_by_ratio(values: Sequence[float]) -> bool:
    """Return whether sorted values of a grid grow by a factor rather than by steps."""
    if not 3 <= len(values) <= 12:
        return False
    ratios = [after / before for before, after in pairwise(values)]
    return min(ratios) >= _GEOMETRIC and max(ratios) / min(ratios) < 3


def _mark(sweep: Sweep, trial: SweepTrial, place: float, scale: ScoreScale) -> Mark:
    assert trial.score is not None
    best = is_best(sweep, trial)
    values = ", ".join(f"{key}={value_text(value)}" for key, value in trial.values.items())
    note = f"trial {trial.number} ({trial.state}): {scale.score(trial.score)}; {values}"
    kind = _BEST if best else KINDS.get(trial.state, "behind")
    name = f"trial {trial.number}" if best else ""
    return Mark(place, trial.score * scale.factor, name, str(trial.number), kind, note, weight=0)


def _fresh_level(sweep: Sweep, scale: ScoreScale) -> list[Level]:
    return [] if sweep.best is None or not known(sweep.best.score) else [Level(sweep.best.score * scale.factor)]


def _heights(sweep: Sweep, marks: Sequence[Mark], scale: ScoreScale) -> list[float]:
    return [mark.y for mark in marks] + [level.value for level in _fresh_level(sweep, scale)]


def _caption(sweep: Sweep, key: str) -> str:
    parts = [f"Each mark is one trial; {key} was searched over {sweep.keys[key]}."]
    if sweep.best is not None:
        parts.append("The dashed line is the winner's score on fresh seeds; what its first score is better was chance.")
    return " ".join(parts)


def _legend(sweep: Sweep, shown: Sequence[SweepTrial]) -> list[tuple[str, str]]:
    states = {trial.state for trial in shown if not is_best(sweep, trial)}
    found = [(sign(_BEST), "the winner's values")] if any(is_best(sweep, trial) for trial in shown) else []
    return found + [(sign(KINDS.get(state, "behind")), f"{state}") for state in sorted(states)]


def _importance(sweep: Sweep) -> Figure:
    ordered = sorted_shares(sweep)
    rows = [(key, share, f"{share:.0%}") for key, share in ordered]
    title = "Importance of the keys"
    description = "; ".join(f"{key} {text}" for key, _, text in rows)
    drawings = {kind: bars(title, description, rows, width=size[0]) for kind, size in SIZES.items()}
    caption = "Importance of each key for being among the best trials (PED-ANOVA), in these trials and ranges only."
    table = plain_table("Importance", ["key", "share"], [[key, f"{share:.6g}"] for key, share in ordered])
    return Figure("importance", title, drawings, caption, table)


def _progress(sweep: Sweep, scored: Sequence[SweepTrial], scale: ScoreScale) -> Figure:
    """Return the scores in the order of the trials: whether the search was still finding better values."""
    marks = [_mark(sweep, trial, float(trial.number), scale) for trial in scored]
    x = linear_axis("trial", [mark.x for mark in marks], lambda value: f"{value:g}")
    y = linear_axis(scale.title, _heights(sweep, marks, scale))
    title = f"{scale.name} of each trial"
    made = {
        kind: scatter(
            title,
            f"{len(marks)} trials with a score, in the order in which they were made.",
            marks,
            x,
            y,
            size=(size[0], size[1] * 0.7),
            levels=_fresh_level(sweep, scale),
        )
        for kind, size in SIZES.items()
    }
    rows = [[str(trial.number), trial.state, f"{trial.score:.10g}"] for trial in scored]
    return Figure(
        "score-by-trial",
        title[0].upper() + title[1:],
        {kind: one.drawing for kind, one in made.items()},
        "In the order in which they were made. If scores still improve at the end, more trials can find better ones.",
        plain_table(title, ["trial", "state", scale.metric], rows, texts=2),
        _legend(sweep, scored),
    )
