"""The curves of a run: losses, evaluation metrics, learning rate, gradient norm and speed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from peftcli.record.charts.chart_axis import linear_axis, short_number
from peftcli.record.charts.curve_chart import Curve, curves
from peftcli.record.charts.drawing import Drawing
from peftcli.record.shown_numbers import is_share
from peftcli.studies.report.cost_figures import SIZES
from peftcli.studies.report.curve_figures import PANEL
from peftcli.studies.report.run_pages.run_files import RunFiles
from peftcli.studies.report.shell.html_parts import Figure, plain_table

NO_METRICS = ("eval_runtime", "eval_rows")
"""Numbers of an evaluation that say nothing about the model."""

_DRAWN = 800
_LISTED = 2000
_LARGEST = 1e100
_OTHERS = (("learning_rate", "learning rate"), ("grad_norm", "gradient norm"), ("tokens_per_second", "tokens/s"))

Points = list[tuple[float, float]]


def run_figures(files: RunFiles) -> list[Figure]:
    """Return the figures that metrics.jsonl has numbers for."""
    training = points(files.lines, "loss")
    evaluated = [line for line in files.lines if "eval_loss" in line]
    found = []
    losses = {"training": training, "held out": points(evaluated, "eval_loss")}
    if any(losses.values()):
        found.append(_figure("loss", "Loss while training", "loss, lower is better", losses))
    keys = sorted({key for line in evaluated for key in line if key.startswith("eval_") and number(line[key])})
    for index, key in enumerate(key for key in keys if key not in ("eval_loss", *NO_METRICS)):
        name = key.removeprefix("eval_").replace("_", " ")
        factor = 100.0 if is_share(key) else 1.0
        series = {name: [(step, value * factor) for step, value in points(evaluated, key)]}
        title = f"{name} (%)" if factor == 100 else name
        found.append(_figure(f"metric-{index + 1}", f"{name.capitalize()} on held-out rows", title, series))
    others = [(words, points(files.lines, key)) for key, words in _OTHERS]
    panels = [_panel(words, found_points) for words, found_points in others if found_points]
    if panels:
        found.append(Figure("pace", "Rate, gradients and speed", panels, "", _lines_table(files.lines)))
    return found


def points(lines: Sequence[Mapping[str, Any]], key: str) -> Points:
    """Return (step, value) of each line that has a number under a key."""
    return [(float(line["step"]), float(line[key])) for line in lines if number(line["step"]) and number(line.get(key))]


def number(value: Any) -> bool:
    """Return whether a value is a number that can be drawn: metrics.jsonl may have been edited."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST


def _figure(name: str, heading: str, title: str, series: Mapping[str, Points]) -> Figure:
    drawn = [
        Curve(words, _thinned(found), index, dots=index > 0 or len(series) == 1)
        for index, (words, found) in enumerate(series.items())
        if found
    ]
    x = linear_axis("optimizer steps", [x for curve in drawn for x, _ in curve.points], short_number, room=0.0)
    y = linear_axis(title, [y for curve in drawn for _, y in curve.points])
    ends = "; ".join(f"{c.name} from {c.points[0][1]:.4g} to {c.points[-1][1]:.4g}" for c in drawn)
    drawings = {
        kind: curves(heading, f"{ends}.", drawn, x, y, size=(size[0], size[1] * 0.85)) for kind, size in SIZES.items()
    }
    every = _stride(max(len(found) for found in series.values()), _LISTED)
    rows = [[words, f"{x:g}", f"{y:.10g}"] for words, found in series.items() for x, y in found[::every]]
    caption = f"{heading}, one in {every} lines of metrics.jsonl" if every > 1 else heading
    return Figure(name, heading, drawings, "", plain_table(caption, ["curve", "step", "value"], rows))


def _panel(words: str, found: Points) -> Drawing:
    x = linear_axis("", [x for x, _ in found], short_number, wanted=4, room=0.0)
    y = linear_axis("", [y for _, y in found], short_number, wanted=4, from_zero=True)
    description = f"From {found[0][1]:.4g} at step {found[0][0]:g} to {found[-1][1]:.4g} at step {found[-1][0]:g}."
    return curves(f"{words} over steps", description, [Curve("", _thinned(found))], x, y, size=PANEL, heading=words)


def _lines_table(lines: Sequence[Mapping[str, Any]]) -> str:
    steps = [line for line in lines if "loss" in line]
    every = _stride(len(steps), _LISTED)
    rows = [
        [f"{line['step']:g}", *(f"{line[key]:.6g}" if number(line.get(key)) else "" for key, _ in _OTHERS)]
        for line in steps[::every]
        if number(line["step"])
    ]
    return plain_table("By optimizer step", ["step", *(words for _, words in _OTHERS)], rows)


def _thinned(found: Points) -> Points:
    """Return at most about `_DRAWN` of the points, the last one among them."""
    every = _stride(len(found), _DRAWN)
    return found if every == 1 else [*found[:-1:every], found[-1]]


def _stride(length: int, most: int) -> int:
    return max(1, math.ceil(length / most))
