"""Curves over two axes: a few with their names at their ends, or one of many small charts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from peftcli.record.charts.chart_axis import Axis
from peftcli.record.charts.drawing import Drawing, shortened, text_width, words
from peftcli.record.charts.palette import SERIES
from peftcli.record.charts.plot_area import LINE, Level, PlotArea, plot_area

_DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 2", "1 3")
_DOTS = 40
"""Up to so many points of a curve are marked."""


@dataclass(frozen=True)
class Curve:
    """Points from left to right.

    Args:
        name: written at its end; empty for none.
        points: pairs of values.
        style: number of its colour and dashes, from 0; None for one that is drawn grey, for comparison.
        dark: drawn in the colour of the text instead, as the reference is.
        dots: whether its points are marked, if they are few.
        joined: whether a line joins them.
    """

    name: str
    points: Sequence[tuple[float, float]]
    style: int | None = 0
    dots: bool = False
    joined: bool = True
    dark: bool = False

    @property
    def kind(self) -> str:
        """Return its CSS class."""
        if self.dark:
            return "dark"
        return "context" if self.style is None else f"series-{self.style % SERIES + 1}"


def curves(
    title: str,
    description: str,
    series: Sequence[Curve],
    x: Axis,
    y: Axis,
    *,
    size: tuple[float, float],
    heading: str = "",
    levels: Sequence[Level] = (),
    crosses: Sequence[float] = (),
    ring: tuple[float, float] | None = None,
) -> Drawing:
    """Draw curves over two axes.

    Args:
        title, description: see `Drawing`.
        series: the curves; the first is drawn last, on top.
        x, y: the axes; all points fit.
        size: width and height in pixels.
        heading: written above the chart, for one of many.
        levels: horizontal lines.
        crosses: values of x without a value of y, marked at the bottom.
        ring: a point to mark.
    """
    width, height = size
    named = [curve for curve in series if curve.name and curve.points]
    right = max((text_width(shortened(curve.name, 18)) for curve in named), default=0.0) + 14 if named else 12
    area = plot_area(x, y, width, height, above=LINE + 4 if heading else 0, right=right)
    parts = [words(shortened(heading, int(width / 8)), 0, LINE - 3, kind="title")] if heading else []
    parts.append(area.frame())
    parts += map(area.level, levels)
    for curve in reversed(series):
        parts += _curve(area, curve)
    parts += [_cross(area, value) for value in crosses]
    if ring is not None:
        across, down = area.place(*ring)
        parts.append(f'<circle class="mark best ring" cx="{across:.1f}" cy="{down:.1f}" r="5"/>')
    parts += _end_names(area, named)
    return Drawing(width, height, "".join(parts), title, description)


def _curve(area: PlotArea, curve: Curve) -> list[str]:
    places = [area.place(x, y) for x, y in curve.points]
    kind = curve.kind
    parts = []
    if curve.joined and len(places) > 1:
        path = " ".join(f"{across:.1f},{down:.1f}" for across, down in places)
        dash = _DASHES[0 if curve.style is None else curve.style % len(_DASHES)]
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        parts.append(f'<polyline class="curve {kind}" points="{path}"{dashed}/>')
    if (curve.dots and len(places) <= _DOTS) or len(places) == 1 or not curve.joined:
        parts += [f'<circle class="dot {kind}" cx="{across:.1f}" cy="{down:.1f}" r="2.5"/>' for across, down in places]
    return parts


def _cross(area: PlotArea, value: float) -> str:
    across, _ = area.place(value, area.y.low)
    down = area.bottom - 7
    return f'<path class="mark worse" d="M{across - 4:.1f} {down - 4:.1f}l8 8m0 -8l-8 8"/>'


def _end_names(area: PlotArea, named: Sequence[Curve]) -> list[str]:
    """Return the names at the ends of curves, moved apart where they would cover each other."""
    ends = sorted(((area.place(*curve.points[-1])[1], curve) for curve in named), key=lambda end: end[0])
    parts, free = [], area.top - 6
    for down, curve in ends:
        free = max(free + 14, down)
        kind = f"name {curve.kind}"
        parts.append(words(shortened(curve.name, 18), area.right + 6, free + 4, kind=kind))
    return parts
