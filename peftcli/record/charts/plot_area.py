"""The area of a chart in which values are drawn, with its grid and the texts around it."""

from __future__ import annotations

from dataclasses import dataclass

from peftcli.record.charts.chart_axis import Axis
from peftcli.record.charts.drawing import line, text_width, words

LINE = 16
"""Pixels of a line of text."""


@dataclass(frozen=True)
class Level:
    """A value of y that is drawn from left to right, such as the reference's; `name` is written above it."""

    value: float
    name: str = ""


@dataclass(frozen=True)
class PlotArea:
    """Where the two axes lie, in pixels; `top` < `bottom`."""

    x: Axis
    y: Axis
    left: float
    top: float
    right: float
    bottom: float

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Return the pixels of a pair of values."""
        across = self.left + self.x.share(x) * (self.right - self.left)
        return across, self.bottom - self.y.share(y) * (self.bottom - self.top)

    def frame(self) -> str:
        """Return the grid, the ticks that have room, and the titles of both axes."""
        parts = [words(self.y.title, 0, self.top - 12)] if self.y.title else []
        for value, text in self.y.ticks:
            _, down = self.place(self.x.low, value)
            parts += [line(self.left, down, self.right, down), words(text, self.left - 8, down + 4, anchor="end")]
        parts.append(line(self.left, self.bottom, self.right, self.bottom, "axis"))
        free = 0.0
        for value, text in self.x.ticks:
            across, _ = self.place(value, self.y.low)
            half = text_width(text) / 2
            parts.append(line(across, self.bottom, across, self.bottom + 4, "axis"))
            if across - half >= free:
                parts.append(words(text, across, self.bottom + 18, anchor="middle"))
                free = across + half + 8
        if self.x.title:
            parts.append(words(self.x.title, self.right, self.bottom + 18 + LINE, anchor="end"))
        return "".join(parts)

    def level(self, level: Level) -> str:
        """Return a dashed line at a value."""
        _, down = self.place(self.x.low, level.value)
        name = words(level.name, self.right, down - 5, kind="name", anchor="end") if level.name else ""
        return line(self.left, down, self.right, down, "level") + name


def plot_area(x: Axis, y: Axis, width: float, height: float, *, above: float = 0, right: float = 12) -> PlotArea:
    """Return the area that the texts around it leave.

    Args:
        x, y: the axes.
        width, height: of the whole chart, in pixels.
        above, right: what stays free at the top, and on the right.
    """
    left = max((text_width(text) for _, text in y.ticks), default=0.0) + 10
    top = above + (LINE + 10 if y.title else 8)
    bottom = height - 22 - (LINE + 2 if x.title else 0)
    return PlotArea(x, y, left, top, max(width - right, left + 40), bottom)
