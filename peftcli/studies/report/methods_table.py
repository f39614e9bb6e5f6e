"""The table of a comparison: a row a method, with its interval as a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from peftcli.record.charts.chart_axis import Axis, linear_axis, short_number
from peftcli.record.charts.drawing import line
from peftcli.record.charts.scatter_chart import shape
from peftcli.record.shown_numbers import byte_size, count, duration
from peftcli.shown_text import escape
from peftcli.studies.compare.comparison import ComparedMethod, Comparison, Interval
from peftcli.studies.report.comparison_text import steps_text
from peftcli.studies.report.shell.html_parts import MISSING, Cell, Column, number_cell, sortable_table, text_cell
from peftcli.studies.report.shell.report_numbers import ScoreScale, known
from peftcli.studies.report.standing import Standing, sign, verdict_words

_WIDTH, _HEIGHT = 150, 22


def methods_table(comparison: Comparison, ordered: Sequence[Standing], scale: ScoreScale) -> str:
    """Return the table; columns in which no method has a value are left out."""
    axis = _forest_axis(comparison, scale)
    made = [_cells(comparison, one, scale, axis) for one in ordered]
    columns = _columns(comparison, scale)
    kept = [index for index in range(len(columns)) if index < 2 or any(row[index].html != MISSING for row in made)]
    caption = (
        f"{len(ordered)} methods, {comparison.rows:,} held-out rows, seeds {', '.join(map(str, comparison.seeds))}. "
        f"Scores are {scale.title}; the range beside a score is its 95% interval."
    )
    return sortable_table(
        "methods", caption, [columns[index] for index in kept], [[row[index] for index in kept] for row in made]
    )


def _columns(comparison: Comparison, scale: ScoreScale) -> list[Column]:
    """Return the columns in the order of `_cells`."""
    best = "descending" if scale.greater_is_better else "ascending"
    forest = "95% interval" + (", dashed: reference" if comparison.reference else "")
    return [
        Column("Method", hint="numbers are those of the figures"),
        Column(scale.name.capitalize(), True, "mean over seeds after training", best, best),
        Column(forest, picture=True),
        Column("Verdict", hint="differences are to the best, with their 95% intervals; p is Holm-corrected"),
        Column("Trained", True, "numbers that training changes, head included"),
        Column("Time", True, "of one training run"),
        Column("Peak memory", True, "of the training process"),
        Column("Rate", True, "learning rate of the scored runs"),
        Column("Steps to reference", True, "until an evaluation while training reached the reference's score"),
        Column("Merges", hint="whether the change can be folded into the base's weights"),
        Column("Loaded by", hint="what loads the saved adapter or model as it is; a merged model loads everywhere"),
        Column("%", True, "trained numbers as a share of all"),
        Column("Saved", True, "numbers in the adapter file"),
        Column("On disk", True, "size of the saved weights"),
        Column("Tokens/s", True, "while training", "descending"),
        Column("Before", True, "score before the first step", best),
        Column("Forgotten", True, "loss on held-out general text after training minus before"),
    ]


def _cells(comparison: Comparison, one: Standing, scale: ScoreScale, axis: Axis | None) -> list[Cell]:
    method = one.method
    forgotten = _change(method.forgotten, method.forgotten_interval)
    return [
        _name(one),
        _score(method.score, method.interval, scale),
        Cell(_forest(comparison, one, scale, axis) if axis is not None else MISSING),
        _verdict(one, scale),
        _number(method.trainable, lambda value: count(round(value))),
        _number(method.seconds, duration),
        _number(method.peak_memory_bytes, byte_size),
        _number(method.rate, short_number),
        _steps(comparison, one),
        text_cell(None if method.merges is None else "yes" if method.merges else "no"),
        text_cell(", ".join(method.servers)),
        _number(method.percent, lambda value: f"{value:.3g}"),
        _number(method.saved, lambda value: count(round(value))),
        _number(method.adapter_bytes, byte_size),
        _number(method.tokens_per_second, lambda value: f"{value:,.0f}"),
        _score(method.score_before, method.interval_before, scale),
        number_cell(method.forgotten if forgotten else None, forgotten),
    ]


def _name(one: Standing) -> Cell:
    label = escape(one.method.label)
    return Cell(
        f'<span class="named"><span class="rank">{one.number}</span><span>{label}</span></span>', one.method.label
    )


def _score(value: float | None, interval: Interval | None, scale: ScoreScale) -> Cell:
    if not known(value):
        return Cell(MISSING)
    between = scale.range(interval)
    small = f"<small>{escape(between)}</small>" if between else ""
    return Cell(escape(scale.score(value, interval)) + small, value)


def _verdict(one: Standing, scale: ScoreScale) -> Cell:
    words, below = verdict_words(one, scale)
    if not words:
        return Cell(MISSING)
    mark = sign(one.kind) if known(one.method.score) else ""
    small = f"<small>{escape(below)}</small>" if below else ""
    return Cell(f'<span class="verdict">{mark}<span>{escape(words)}{small}</span></span>', f"{one.order} {words}")


def _steps(comparison: Comparison, one: Standing) -> Cell:
    text = steps_text(one.method, comparison)
    return Cell(text, one.method.steps_to_reference) if text else Cell(MISSING)


def _number(value: float | None, write: Callable[[float], str]) -> Cell:
    return number_cell(value, write(value)) if known(value) else Cell(MISSING)


def _change(value: float | None, interval: Interval | None) -> str:
    """Return a change of loss with its sign."""
    if not known(value):
        return ""
    return ("" if value < 0 else "+") + ScoreScale("loss", greater_is_better=False).difference_text(value, interval)


def _forest_axis(comparison: Comparison, scale: ScoreScale) -> Axis | None:
    """Return the common axis of all intervals; None if no method has a score."""
    values = []
    for method in comparison.methods:
        if known(method.score):
            values += [method.score * scale.factor, *_ends(method, scale)]
    return linear_axis("", values) if values else None


def _ends(method: ComparedMethod, scale: ScoreScale) -> list[float]:
    if method.interval is None or not all(map(known, method.interval)):
        return []
    return [end * scale.factor for end in method.interval]


def _forest(comparison: Comparison, one: Standing, scale: ScoreScale, axis: Axis) -> str:
    """Return a score with its interval on the common axis, with the reference's score as a dashed line."""
    method = one.method
    if not known(method.score):
        return ""
    middle = _HEIGHT / 2
    parts = []
    reference = comparison.reference_method
    if reference is not None and known(reference.score):
        across = 6 + axis.share(reference.score * scale.factor) * (_WIDTH - 12)
        parts.append(line(across, 0, across, _HEIGHT, "level"))
    ends = [6 + axis.share(end) * (_WIDTH - 12) for end in _ends(method, scale)]
    if ends:
        parts.append(line(ends[0], middle, ends[1], middle, f"whisker {one.kind}"))
    parts.append(shape(one.kind, 6 + axis.share(method.score * scale.factor) * (_WIDTH - 12), middle))
    return (
        f'<svg class="chart forest" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" '
        f'aria-hidden="true">{"".join(parts)}</svg>'
    )
