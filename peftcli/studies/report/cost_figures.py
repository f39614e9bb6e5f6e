"""What a point of score costs: score against trained parameters, time and memory, with error bars and the frontier."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from peftcli.record.charts.chart_axis import Axis, linear_axis, log_axis
from peftcli.record.charts.plot_area import Level
from peftcli.record.charts.scatter_chart import Mark, pareto_frontier, scatter
from peftcli.record.shown_numbers import byte_size, count, duration
from peftcli.studies.compare.comparison import ComparedMethod, Comparison
from peftcli.studies.report.shell.html_parts import Figure, plain_table
from peftcli.studies.report.shell.report_numbers import ScoreScale, known
from peftcli.studies.report.standing import MEANINGS, Standing, sign

SIZES = {"wide": (940.0, 480.0), "narrow": (340.0, 400.0)}
"""Kind of a screen -> width and height of a chart, in pixels."""


@dataclass(frozen=True)
class Cost:
    """One cost.

    Args:
        name: in names of files.
        words: in words.
        no_more: what a cheaper method says of it: `in as little time`.
        of: its value in a method.
        write: that value with its unit.
        units: size and name of each unit in which the axis may count, the largest first.
    """

    name: str
    words: str
    no_more: str
    of: Callable[[ComparedMethod], float | None]
    write: Callable[[float], str]
    units: tuple[tuple[float, str], ...] = ((1.0, ""),)


COSTS = (
    Cost(
        "parameters",
        "trained parameters",
        "with as few trained parameters",
        lambda method: method.trainable,
        lambda value: count(round(value)),
    ),
    Cost(
        "time",
        "training time",
        "in as little time",
        lambda method: method.seconds,
        duration,
        ((3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds")),
    ),
    Cost(
        "memory",
        "peak memory",
        "in as little memory",
        lambda method: method.peak_memory_bytes,
        byte_size,
        ((1e9, "GB"), (1e6, "MB"), (1.0, "bytes")),
    ),
)


def cost_figures(comparison: Comparison, ordered: Sequence[Standing], scale: ScoreScale) -> list[Figure]:
    """Return a figure for each cost that a method with a score has."""
    found = []
    for cost in COSTS:
        shown = [one for one in ordered if known(one.method.score) and known(cost.of(one.method))]
        if shown:
            found.append(_figure(comparison, cost, shown, scale))
    return found


def _figure(comparison: Comparison, cost: Cost, shown: Sequence[Standing], scale: ScoreScale) -> Figure:
    size, unit = _unit(cost, [cost.of(one.method) or 0.0 for one in shown])
    marks = {one.number: _mark(one, cost, scale, size) for one in shown}
    axis = _axis(cost, [mark.x for mark in marks.values()], unit)
    drawn = [marks[one.number] for one in shown if not axis.log or marks[one.number].x > 0]
    frontier = pareto_frontier(list(marks.values()), greater_is_better=comparison.greater_is_better)
    names = {marks[one.number]: one.method.label for one in shown}
    weighed = [_weighed(mark, frontier) for mark in drawn]
    scores = [value for mark in weighed for value in (mark.y, *(mark.interval or ()))]
    levels = reference_level(comparison, scale)
    scores += [level.value for level in levels]
    title = f"{scale.name} against {cost.words}"
    description = (
        f"{len(shown)} methods. On the frontier, from the least {cost.words} to the most: "
        f"{', '.join(names[mark] for mark in frontier)}. The numbers are in the table below the figure."
    )
    made = {
        kind: scatter(
            title,
            description,
            list(reversed(weighed)),
            axis,
            linear_axis(scale.title, scores),
            size=pixels,
            frontier=[mark for mark in frontier if not axis.log or mark.x > 0],
            levels=levels,
        )
        for kind, pixels in SIZES.items()
    }
    numbered = {mark.number: mark.note.partition(":")[0] for one in made.values() for mark in one.numbered}
    numbers = [(f"<b>{number}</b>", numbered[number]) for number in sorted(numbered, key=int)]
    return Figure(
        f"score-by-{cost.name}",
        title[0].upper() + title[1:],
        {kind: one.drawing for kind, one in made.items()},
        _caption(names, frontier, cost, comparison, bool(levels)),
        _table(title, cost, shown, frontier, marks, scale),
        [*_kinds(shown), *numbers],
    )


def _mark(one: Standing, cost: Cost, scale: ScoreScale, unit: float) -> Mark:
    method = one.method
    value, score = cost.of(method), method.score
    assert value is not None and score is not None
    interval = None
    if method.interval is not None and all(map(known, method.interval)):
        interval = (method.interval[0] * scale.factor, method.interval[1] * scale.factor)
    note = f"{method.label}: {scale.score(score, method.interval)}"
    note += f" ({scale.range(method.interval)})" if interval else ""
    return Mark(
        value / unit,
        score * scale.factor,
        method.label,
        str(one.number),
        one.kind,
        f"{note}, {cost.write(value)}",
        interval,
    )


def _weighed(mark: Mark, frontier: Sequence[Mark]) -> Mark:
    """Return a mark that is named before others if it matters more."""
    weight = 0 if mark.kind == "best" else 1 if mark.kind == "reference" or mark in frontier else 2
    weight += 1 if mark.kind == "behind" or (mark.kind == "worse" and weight > 1) else 0
    return Mark(mark.x, mark.y, mark.name, mark.number, mark.kind, mark.note, mark.interval, weight)


def _unit(cost: Cost, values: Sequence[float]) -> tuple[float, str]:
    """Return the size and name of the largest unit of which the largest value has two."""
    return next((unit for unit in cost.units if max(values) >= 2 * unit[0]), cost.units[-1])


def _axis(cost: Cost, values: Sequence[float], unit: str) -> Axis:
    """Return the axis of a cost: parameters by ratio, time and memory by difference unless far apart."""
    title = f"{cost.words} ({unit})" if unit else cost.words
    positive = [value for value in values if value > 0]
    if positive and (cost.name == "parameters" or max(positive) / min(positive) > 30):
        return log_axis(f"{title}, logarithmic", positive)
    return linear_axis(title, values, wanted=6)


def reference_level(comparison: Comparison, scale: ScoreScale) -> list[Level]:
    """Return the line of the reference's score; none without one."""
    reference = comparison.reference_method
    if reference is None or not known(reference.score):
        return []
    return [Level(reference.score * scale.factor)]


def _kinds(shown: Sequence[Standing]) -> list[tuple[str, str]]:
    present = {one.kind for one in shown}
    return [(sign(kind), MEANINGS[kind]) for kind in MEANINGS if kind in present]


def _caption(names: dict[Mark, str], frontier: Sequence[Mark], cost: Cost, comparison: Comparison, level: bool) -> str:
    best = ", ".join(names[mark] for mark in frontier)
    parts = [f"The stepped line is the frontier: {best}. Nothing else scores better {cost.no_more}."]
    if any(mark.interval is not None for mark in names):
        parts.append("Bars are 95% intervals; where they overlap, the order may be chance.")
    if level:
        parts.append(f"The dashed line is the score of {comparison.reference}, the reference.")
    return " ".join(parts)


def _table(
    title: str,
    cost: Cost,
    shown: Sequence[Standing],
    frontier: Sequence[Mark],
    marks: dict[int, Mark],
    scale: ScoreScale,
) -> str:
    rows = []
    for one in shown:
        method, value = one.method, cost.of(one.method)
        low, high = method.interval or (None, None)
        rows.append(
            [
                method.label,
                "yes" if marks[one.number] in frontier else "no",
                _exact(value),
                *(_exact(number) for number in (method.score, low, high)),
            ]
        )
    unit = {"time": " (s)", "memory": " (bytes)"}.get(cost.name, "")
    columns = ["method", "on the frontier", f"{cost.words}{unit}", scale.metric, "95% from", "95% to"]
    return plain_table(f"{title[0].upper()}{title[1:]}, as recorded", columns, rows, texts=2)


def _exact(value: float | None) -> str:
    return f"{value:.10g}" if known(value) else ""
