"""Marks with error bars and names over two axes, and the frontier of those that nothing beats in both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from peftcli.record.charts.chart_axis import Axis
from peftcli.record.charts.drawing import Drawing, line, shortened, words
from peftcli.record.charts.label_places import Box, Label, Wanted, place_labels
from peftcli.record.charts.palette import KINDS
from peftcli.record.charts.plot_area import Level, PlotArea, plot_area
from peftcli.shown_text import escape

RADIUS = 5


@dataclass(frozen=True)
class Mark:
    """One mark.

    Args:
        x, y: values.
        name: written beside it where there is room; empty for none.
        number: written instead where there is none.
        kind: one of `palette.KINDS`.
        note: shown when it is pointed at.
        interval: the ends of its error bar along y.
        weight: lower is named first; up to 1, the name is kept wherever it fits at all.
    """

    x: float
    y: float
    name: str = ""
    number: str = ""
    kind: str = "plain"
    note: str = ""
    interval: tuple[float, float] | None = None
    weight: int = 2


@dataclass(frozen=True)
class Scatter:
    """A scatter chart, and which marks have their number instead of their name."""

    drawing: Drawing
    numbered: list[Mark]


def scatter(
    title: str,
    description: str,
    marks: Sequence[Mark],
    x: Axis,
    y: Axis,
    *,
    size: tuple[float, float],
    frontier: Sequence[Mark] = (),
    levels: Sequence[Level] = (),
) -> Scatter:
    """Draw marks over two axes.

    Args:
        title, description: see `Drawing`.
        marks: in the order in which they are drawn.
        x, y: the axes; all marks fit.
        size: width and height in pixels.
        frontier: the marks that `pareto_frontier` returned.
        levels: horizontal lines.
    """
    width, height = size
    area = plot_area(x, y, width, height)
    parts = [area.frame(), *map(area.level, levels)]
    if frontier:
        parts.append(_staircase(area, frontier))
    places = [area.place(mark.x, mark.y) for mark in marks]
    bars = [_bar(area, mark) for mark in marks]
    parts += [_whisker(mark, *bar) for mark, bar in zip(marks, bars, strict=True) if bar is not None]
    labels = _labels(area, marks, places, [bar for bar in bars if bar is not None], frontier)
    parts += [line(*label.leader, "leader") for label in labels.values() if label.leader is not None]
    for mark, (across, down) in zip(marks, places, strict=True):
        note = f"<title>{escape(mark.note)}</title>" if mark.note else ""
        parts.append(f"<g>{note}{shape(mark.kind, across, down)}</g>")
    for index, label in labels.items():
        strong = " strong" if marks[index].weight == 0 else ""
        parts.append(words(label.text, label.box[0], label.box[3] - 2.5, kind=f"name{strong}"))
    numbered = [marks[index] for index, label in labels.items() if not label.whole]
    return Scatter(Drawing(width, height, "".join(parts), title, description), numbered)


def pareto_frontier(marks: Sequence[Mark], *, greater_is_better: bool) -> list[Mark]:
    """Return the marks that no other beats in y without a greater x, from left to right."""
    sign = 1 if greater_is_better else -1
    found: list[Mark] = []
    for mark in sorted(marks, key=lambda mark: (mark.x, -sign * mark.y)):
        if not found or sign * mark.y > sign * found[-1].y:
            found.append(mark)
    return found


def shape(kind: str, x: float, y: float, radius: float = RADIUS) -> str:
    """Return a mark of one of `palette.KINDS`: each differs in its shape, too."""
    assert kind in KINDS, kind
    drawn = f'class="mark {kind}{" hollow" if kind in ("behind", "worse") else ""}"'
    if kind == "best":
        r = radius * 1.45
        return f'<path {drawn} d="M{x:.1f} {y - r:.1f}l{r:.1f} {r:.1f}l{-r:.1f} {r:.1f}l{-r:.1f} {-r:.1f}z"/>'
    if kind == "worse":
        r = radius * 1.15
        return f'<path {drawn} d="M{x - r:.1f} {y - r * 0.8:.1f}h{2 * r:.1f}l{-r:.1f} {1.8 * r:.1f}z"/>'
    if kind == "reference":
        r = radius * 0.9
        return f'<rect {drawn} x="{x - r:.1f}" y="{y - r:.1f}" width="{2 * r:.1f}" height="{2 * r:.1f}"/>'
    return f'<circle {drawn} cx="{x:.1f}" cy="{y:.1f}" r="{radius * 0.9:.1f}"/>'


def _bar(area: PlotArea, mark: Mark) -> tuple[float, float, float] | None:
    """Return the pixels of an error bar: across, top and bottom; None without one."""
    if mark.interval is None:
        return None
    ends = [area.place(mark.x, min(max(end, area.y.low), area.y.high)) for end in mark.interval]
    return ends[0][0], min(down for _, down in ends), max(down for _, down in ends)


def _whisker(mark: Mark, across: float, top: float, bottom: float) -> str:
    kind = f"whisker {mark.kind}"
    ends = "".join(line(across - 3, down, across + 3, down, kind) for down in (top, bottom))
    return line(across, top, across, bottom, kind) + ends


def _labels(
    area: PlotArea,
    marks: Sequence[Mark],
    places: Sequence[tuple[float, float]],
    bars: Sequence[tuple[float, float, float]],
    frontier: Sequence[Mark],
) -> dict[int, Label]:
    """Return the label of each mark that has a name, by its index."""
    named = [index for index, mark in enumerate(marks) if mark.name]
    wanted = [
        Wanted(*places[index], shortened(marks[index].name), marks[index].number, marks[index].weight)
        for index in named
    ]
    taken: list[Box] = [(across - 2, top, across + 2, bottom) for across, top, bottom in bars]
    taken += _stairs_boxes(area, frontier)
    labels = place_labels(wanted, taken, (area.left + 2, area.top - 4, area.right, area.bottom - 2))
    return dict(zip(named, labels, strict=True))


def _staircase(area: PlotArea, frontier: Sequence[Mark]) -> str:
    """Return the line below which everything is reached by a mark of the frontier."""
    steps: list[str] = []
    for mark in frontier:
        across, down = area.place(mark.x, mark.y)
        steps.append(f"H{across:.1f}V{down:.1f}" if steps else f"M{across:.1f} {down:.1f}")
    return f'<path class="frontier" d="{"".join(steps)}H{area.right:.1f}"/>'


def _stairs_boxes(area: PlotArea, frontier: Sequence[Mark]) -> list[Box]:
    """Return the boxes of the frontier's steps, which names should not cover."""
    places = [area.place(mark.x, mark.y) for mark in frontier]
    boxes: list[Box] = []
    for (left, down), (right, up) in pairwise([*places, (area.right, places[-1][1])] if places else []):
        boxes += [(left, down - 1, right, down + 1), (right - 1, min(up, down), right + 1, max(up, down))]
    return boxes
