"""Plots as SVG. Written by hand, so that every run has its plots without a plotting library to install and import."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from peftcli.record.charts.chart_axis import linear_axis
from peftcli.shown_text import escape

Points = Sequence[tuple[float, float]]
COLOURS = ("#1f6feb", "#d1570b", "#2da44e", "#8250df", "#bf3989", "#9a6700", "#1b7c83", "#57606a")
WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 720, 400, 70, 50, 40, 20


def document(panels: Sequence[tuple[float, str]]) -> str:
    """Return the text of an SVG file with one panel below the other.

    Args:
        panels: height and SVG elements of each; all are `WIDTH` wide.
    """
    height = sum(each for each, _ in panels)
    parts = []
    top = 0.0
    for each, body in panels:
        parts.append(f'<g transform="translate(0,{top:g})">\n{body}\n</g>' if len(panels) > 1 else body)
        top += each
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}" height="{height:g}" '
        'font-family="sans-serif" font-size="12">\n<rect width="100%" height="100%" fill="white"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def line_panel(title: str, series: Mapping[str, Points], x_title: str, *, from_zero: bool = False) -> tuple[float, str]:
    """Return a line plot as a panel for `document`.

    Args:
        title: heading.
        series: name to (x, y) pairs in order; empty ones are left out.
        x_title: title of the horizontal axis.
        from_zero: start the vertical axis at 0.
    """
    series = {name: points for name, points in series.items() if points}
    xs = [x for points in series.values() for x, _ in points] or [0.0, 1.0]
    ys = [y for points in series.values() for _, y in points] or [0.0, 1.0]
    across, up = linear_axis(x_title, xs, room=0.0), linear_axis(title, ys, from_zero=from_zero)

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT + across.share(x) * (WIDTH - LEFT - RIGHT), TOP + (1 - up.share(y)) * (HEIGHT - TOP - BOTTOM)

    parts = [_title(title)]
    for y, text in up.ticks:
        py = place(across.low, y)[1]
        parts.append(f'<line x1="{LEFT}" y1="{py:.1f}" x2="{WIDTH - RIGHT}" y2="{py:.1f}" stroke="#d0d7de"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{py + 4:.1f}" text-anchor="end">{text}</text>')
    for x, _ in across.ticks:
        if x == round(x):  # steps and numbers of values are whole
            px = place(x, up.low)[0]
            parts.append(f'<text x="{px:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{x:.0f}</text>')
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 10}" text-anchor="middle">{escape(x_title)}</text>')
    for index, (name, points) in enumerate(series.items()):
        colour = COLOURS[index % len(COLOURS)]
        places = [place(x, y) for x, y in points]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        if len(points) <= 40:
            parts += [f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3" fill="{colour}"/>' for px, py in places]
        parts.append(f'<text x="{WIDTH - RIGHT - 4}" y="{TOP + 16 + 16 * index}" text-anchor="end" fill="{colour}">')
        parts.append(f"{escape(name)}</text>")
    return HEIGHT, "\n".join(parts)


def heat_panel(
    title: str, rows: Sequence[str], columns: Sequence[str], values: Mapping[tuple[str, str], float], x_title: str
) -> tuple[float, str]:
    """Return a table of shaded cells as a panel for `document`; larger values are darker.

    Args:
        title: heading.
        rows, columns: names, from top to bottom and from left to right.
        values: (row, column) to a number of 0 or more; a cell without a value stays empty.
        x_title: title of the columns.
    """
    left, cell_height = 110, 26
    width = (WIDTH - left - RIGHT) / max(1, len(columns))
    largest = max(values.values(), default=0.0) or 1.0
    bottom = TOP + cell_height * len(rows)
    parts = [_title(title)]
    for down, row in enumerate(rows):
        y = TOP + cell_height * down
        parts.append(f'<text x="{left - 6}" y="{y + 17}" text-anchor="end">{escape(row)}</text>')
        for across, column in enumerate(columns):
            value = values.get((row, column))
            if value is None:
                continue
            shade = value / largest
            x = left + width * across
            parts.append(
                f'<rect x="{x:.1f}" y="{y}" width="{width - 1:.1f}" height="{cell_height - 1}" '
                f'fill="#1f6feb" fill-opacity="{0.08 + 0.92 * shade:.3f}"/>'
            )
            if width >= 38:
                colour = "white" if shade > 0.65 else "black"
                middle = f'x="{x + width / 2:.1f}" y="{y + 17}" text-anchor="middle"'
                parts.append(f'<text {middle} font-size="11" fill="{colour}">{value:.2g}</text>')
    step = max(1, -(-len(columns) * 26 // (WIDTH - left - RIGHT)))  # numbers of columns need about 26 pixels
    for across in range(0, len(columns), step):
        x = left + width * (across + 0.5)
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{escape(columns[across])}</text>')
    parts.append(
        f'<text x="{(left + WIDTH - RIGHT) / 2}" y="{bottom + 36}" text-anchor="middle">{escape(x_title)}</text>'
    )
    return bottom + 48, "\n".join(parts)


def _title(text: str) -> str:
    return f'<text x="{WIDTH / 2}" y="22" text-anchor="middle" font-size="15">{escape(text)}</text>'
