"""How methods got to their scores: score and loss over steps, and what each learning rate gave."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

from peftcli.record.charts.chart_axis import Axis, linear_axis, log_axis, short_number
from peftcli.record.charts.curve_chart import Curve, curves
from peftcli.record.charts.drawing import Drawing
from peftcli.record.charts.plot_area import Level
from peftcli.studies.compare import comparison as record
from peftcli.studies.compare.comparison import ComparedMethod, Comparison
from peftcli.studies.report.cost_figures import SIZES, reference_level
from peftcli.studies.report.shell.html_parts import Figure, plain_table
from peftcli.studies.report.shell.report_numbers import ScoreScale, known, mean
from peftcli.studies.report.standing import Standing

PANEL = (230.0, 160.0)
NAMED = 4
"""Methods whose curve has a colour and a name; the others are grey."""


def _small(width: int, drawn: str) -> str:
    """Return a sign of a legend."""
    kind = "chart line" if width > 14 else "chart"
    return f'<svg class="{kind}" viewBox="0 0 {width} 14" aria-hidden="true">{drawn}</svg>'


SEED_LINE = _small(26, '<path class="curve series-1" d="M0 7h26"/>')
LEVEL_LINE = _small(26, '<path class="level" d="M0 7h26"/>')
GREY_LINE = _small(26, '<path class="curve context" d="M0 7h26"/>')
CHOSEN = _small(14, '<circle class="mark best ring" cx="7" cy="7" r="5"/>')
CROSS = _small(14, '<path class="mark worse" d="M3 3l8 8m0 -8l-8 8"/>')

Points = list[tuple[float, float]]


def curve_figures(comparison: Comparison, ordered: Sequence[Standing], scale: ScoreScale) -> list[Figure]:
    """Return the figures whose curves the methods have."""
    found = []
    scored = [one for one in ordered if any(_scores(curve, scale.factor) for curve in one.method.curves)]
    if scored:
        found += [_together(comparison, scored, scale), _score_panels(comparison, scored, scale)]
    lossy = [one for one in ordered if any(_losses(curve) for curve in one.method.curves)]
    if lossy and comparison.metric != "eval_loss":
        found.append(_loss_panels(lossy))
    return found


def rate_figure(ordered: Sequence[Standing], scale: ScoreScale) -> Figure | None:
    """Return what each learning rate of the search gave, a small chart a method; None without a search."""
    shown = [one for one in ordered if len(one.method.rates) > 1]
    rates = [point.rate for one in shown for point in one.method.rates if point.rate > 0]
    if not rates:
        return None
    x = log_axis("", rates, short_number)
    scores = [point.score * scale.factor for one in shown for point in one.method.rates if known(point.score)]
    y = linear_axis("", scores, wanted=4)
    panels = [_rate_panel(one.method, x, y, scale) for one in shown]
    rows = [
        [one.method.label, f"{point.rate:.6g}", point.state, f"{point.score:.10g}" if known(point.score) else ""]
        for one in shown
        for point in sorted(one.method.rates, key=lambda point: point.rate)
    ]
    table = plain_table("Short runs of the rate search", ["method", "rate", "state", scale.metric], rows, texts=1)
    missing = any(not known(point.score) for one in shown for point in one.method.rates)
    legend = [(CHOSEN, "the rate that was chosen"), *([(CROSS, "diverged or stopped early")] if missing else [])]
    caption = f"{_capital(scale.title)}; learning rates from left to right, logarithmic. All charts have the same axes."
    return Figure("rate-curves", "Score by learning rate, in short runs", panels, caption, table, legend)


def _rate_panel(method: ComparedMethod, x: Axis, y: Axis, scale: ScoreScale) -> Drawing:
    found = sorted(method.rates, key=lambda point: point.rate)
    points = [(point.rate, point.score * scale.factor) for point in found if known(point.score) and point.rate > 0]
    chosen = next((point for point in points if method.rate is not None and _near(point[0], method.rate)), None)
    words = ", ".join(f"{rate:.3g}: {score:.4g}" for rate, score in points) or "no short run has a score"
    return curves(
        f"{method.label}: score by learning rate",
        f"{words}; chosen {method.rate:.3g}." if method.rate is not None else f"{words}.",
        [Curve("", points, dots=True)],
        x,
        y,
        size=PANEL,
        heading=method.label,
        crosses=[point.rate for point in found if not known(point.score) and point.rate > 0],
        ring=chosen,
    )


def _near(one: float, other: float) -> bool:
    return abs(one - other) <= 1e-6 * abs(other)


def _together(comparison: Comparison, scored: Sequence[Standing], scale: ScoreScale) -> Figure:
    """Return the mean curve of every method in one chart; the first few, and the reference, have names."""
    means = {one.number: _mean_points(one.method, lambda curve: _scores(curve, scale.factor)) for one in scored}
    named = [one for one in scored if one.kind != "reference"][:NAMED]
    named += [one for one in scored if one.kind == "reference"]
    styles = {one.number: index for index, one in enumerate(named)}
    grey = [one for one in scored if one.number not in styles]
    level = reference_level(comparison, scale)
    x, y = _axes(means.values(), level, scale.title, x_title="optimizer steps")
    series = [
        Curve(one.method.label, means[one.number], styles[one.number], dots=True, dark=one.kind == "reference")
        for one in named
    ]
    series += [Curve("", means[one.number], None) for one in grey]
    title = f"{_capital(scale.name)} while training"
    description = f"Mean over seeds of {len(scored)} methods; named: {', '.join(one.method.label for one in named)}."
    drawings = {kind: curves(title, description, series, x, y, size=size, levels=level) for kind, size in SIZES.items()}
    rows = [[one.method.label, f"{step:g}", f"{score:.10g}"] for one in scored for step, score in means[one.number]]
    table = plain_table(f"{title}, mean over seeds", ["method", "step", f"{scale.metric}{_percent(scale)}"], rows)
    legend = [(LEVEL_LINE, f"final score of {comparison.reference}, the reference")] if level else []
    others = "the other method" if len(grey) == 1 else f"the other {len(grey)} methods"
    legend += [(GREY_LINE, others)] if grey else []
    caption = "Each line is the mean of a method's seeds, from the first evaluation to the last."
    return Figure("score-curves", title, drawings, caption, table, legend)


def _score_panels(comparison: Comparison, scored: Sequence[Standing], scale: ScoreScale) -> Figure:
    level = reference_level(comparison, scale)
    lines = {one.number: [_scores(curve, scale.factor) for curve in one.method.curves] for one in scored}
    x, y = _axes([points for group in lines.values() for points in group], level, "", x_title="")
    panels = [_panel(one, lines[one.number], x, y, scale.name, level) for one in scored]
    table = _curve_table(
        f"{_capital(scale.name)} of each run{_percent(scale)}", scored, lambda c: _scores(c, scale.factor)
    )
    legend = [(SEED_LINE, "one seed")]
    legend += [(LEVEL_LINE, f"final score of {comparison.reference}, the reference")] if level else []
    caption = f"{_capital(scale.title)}; optimizer steps from left to right. All charts have the same axes."
    return Figure("score-curves-by-method", "Score of each method, by seed", panels, caption, table, legend)


def _loss_panels(lossy: Sequence[Standing]) -> Figure:
    lines = {one.number: [_losses(curve) for curve in one.method.curves] for one in lossy}
    x, y = _axes([points for group in lines.values() for points in group], [], "", x_title="")
    panels = [_panel(one, lines[one.number], x, y, "loss", []) for one in lossy]
    table = _curve_table("Loss on held-out rows of each run", lossy, _losses)
    caption = (
        "Loss on held-out rows, lower is better; optimizer steps from left to right. All charts have the same axes."
    )
    return Figure("loss-curves", "Loss of each method, by seed", panels, caption, table, [(SEED_LINE, "one seed")])


def _panel(one: Standing, lines: Sequence[Points], x: Axis, y: Axis, what: str, level: Sequence[Level]) -> Drawing:
    label = one.method.label
    ends = ", ".join(f"{points[0][1]:.4g} to {points[-1][1]:.4g}" for points in lines if points)
    return curves(
        f"{label}: {what} over steps",
        f"From the first evaluation to the last, by seed: {ends}." if ends else "No evaluation has a number.",
        [Curve("", points, dots=True) for points in lines],
        x,
        y,
        size=PANEL,
        heading=label,
        levels=level,
    )


def _axes(lines: object, level: Sequence[Level], title: str, *, x_title: str) -> tuple[Axis, Axis]:
    points = [point for each in lines for point in each]  # type: ignore[attr-defined]
    x = linear_axis(x_title, [x for x, _ in points], lambda value: short_number(value), wanted=4, room=0.0)
    values = [y for _, y in points] + [one.value for one in level]
    return x, linear_axis(title, values, wanted=5 if title else 4)


def _scores(curve: record.Curve, factor: float) -> Points:
    return [(step, score * factor) for step, score in zip(curve.steps, curve.scores, strict=False) if known(score)]


def _losses(curve: record.Curve) -> Points:
    return [(step, loss) for step, loss in zip(curve.steps, curve.losses, strict=False) if known(loss)]


def _mean_points(method: ComparedMethod, points_of: Callable[[record.Curve], Points]) -> Points:
    """Return the mean over seeds at the steps that every seed reached."""
    found: dict[float, list[float]] = defaultdict(list)
    lines = [points for points in map(points_of, method.curves) if points]
    for points in lines:
        for step, value in points:
            found[step].append(value)
    return [(step, mean(values)) for step, values in sorted(found.items()) if len(values) == len(lines)]


def _curve_table(caption: str, shown: Sequence[Standing], points_of: Callable[[record.Curve], Points]) -> str:
    """Return a row for each method and step, and a column for each seed."""
    seeds = sorted({curve.seed for one in shown for curve in one.method.curves})
    rows = []
    for one in shown:
        values = {(step, curve.seed): value for curve in one.method.curves for step, value in points_of(curve)}
        for step in sorted({step for step, _ in values}):
            cells = [f"{values[step, seed]:.10g}" if (step, seed) in values else "" for seed in seeds]
            rows.append([one.method.label, f"{step:g}", *cells])
    return plain_table(caption, ["method", "step", *(f"seed {seed}" for seed in seeds)], rows)


def _percent(scale: ScoreScale) -> str:
    return " (%)" if scale.factor == 100 else ""


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
