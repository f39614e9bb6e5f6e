"""Loss and evaluation curves as SVG, written by hand: plots exist whatever is installed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from peftcli.atomic import write_text

Points = Sequence[tuple[float, float]]
COLOURS = ("#1f6feb", "#d1570b", "#2da44e", "#8250df")
WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 720, 400, 70, 50, 40, 20


def write_plots(directory: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Draw metrics.jsonl: plots/loss.svg, plots/learning_rate.svg, and a file for each other evaluation metric."""
    evaluations = [line for line in lines if "eval_loss" in line]
    loss = {"train": _points(lines, "loss"), "eval": _points(evaluations, "eval_loss")}
    write_text(directory / "loss.svg", curves_svg("loss", loss))
    write_text(
        directory / "learning_rate.svg", curves_svg("learning rate", {"learning rate": _points(lines, "learning_rate")})
    )
    numbers = {
        key for line in evaluations for key, value in line.items() if key.startswith("eval_") and _is_number(value)
    }
    for key in sorted(numbers - {"eval_loss", "eval_runtime", "eval_rows"}):
        write_text(directory / f"{key}.svg", curves_svg(key, {key: _points(evaluations, key)}))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _points(lines: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    pairs = [(float(line["step"]), float(line[key])) for line in lines if _is_number(line.get(key))]
    return [pair for pair in pairs if math.isfinite(pair[1])]


def curves_svg(title: str, series: Mapping[str, Points]) -> str:
    """Return a line plot over steps.

    Args:
        title: heading and name of the vertical axis.
        series: name: (step, value) pairs in order; empty ones are left out.
    """
    series = {name: points for name, points in series.items() if points}
    xs = [x for points in series.values() for x, _ in points] or [0.0, 1.0]
    ys = [y for points in series.values() for _, y in points] or [0.0, 1.0]
    x_low, x_high = min(xs), max(xs)
    y_low, y_high = min(ys), max(ys)
    x_span, margin = (x_high - x_low) or 1.0, 0.05 * ((y_high - y_low) or abs(y_high) or 1.0)
    y_low, y_high = y_low - margin, y_high + margin

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - x_low) / x_span * (WIDTH - LEFT - RIGHT)
        return across, TOP + (y_high - y) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)

    parts = [f'<text x="{WIDTH / 2}" y="22" text-anchor="middle" font-size="15">{escape(title)}</text>']
    for index in range(6):
        x, y = x_low + x_span * index / 5, y_low + (y_high - y_low) * index / 5
        (px, _), (_, py) = place(x, y_low), place(x_low, y)
        parts.append(f'<line x1="{LEFT}" y1="{py:.1f}" x2="{WIDTH - RIGHT}" y2="{py:.1f}" stroke="#d0d7de"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{py + 4:.1f}" text-anchor="end">{y:.3g}</text>')
        parts.append(f'<text x="{px:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{x:.0f}</text>')
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 10}" text-anchor="middle">step</text>')
    for index, (name, points) in enumerate(series.items()):
        colour = COLOURS[index % len(COLOURS)]
        places = [place(x, y) for x, y in points]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        if len(points) <= 40:
            parts += [f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3" fill="{colour}"/>' for px, py in places]
        parts.append(f'<text x="{WIDTH - RIGHT - 4}" y="{TOP + 16 + 16 * index}" text-anchor="end" fill="{colour}">')
        parts.append(f"{escape(name)}</text>")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'font-family="sans-serif" font-size="12">\n<rect width="100%" height="100%" fill="white"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )
