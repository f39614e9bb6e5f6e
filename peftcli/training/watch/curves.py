"""Loss and evaluation curves of a run, as SVG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peftcli.atomic import write_text
from peftcli.record.svg import Points, document, line_panel
from peftcli.write_errors import OTHER_RUN

_LARGEST = 1e100
"""Numbers beyond this are not drawn."""


def write_plots(directory: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Draw metrics.jsonl: plots/loss.svg, plots/learning_rate.svg, and a file for each other evaluation metric."""
    evaluations = [line for line in lines if "eval_loss" in line]
    loss = {"train": _points(lines, "loss"), "eval": _points(evaluations, "eval_loss")}
    plots = {"loss": curves_svg("loss", loss)}
    plots["learning_rate"] = curves_svg("learning rate", {"learning rate": _points(lines, "learning_rate")})
    numbers = {
        key
        for line in evaluations
        for key, value in line.items()
        if key.startswith("eval_") and _is_name(key) and _is_number(value)
    }
    for key in sorted(numbers - {"eval_loss", "eval_runtime", "eval_rows"}):
        plots[key] = curves_svg(key, {key: _points(evaluations, key)})
    for name, plot in plots.items():
        write_text(directory / f"{name}.svg", plot, instead=OTHER_RUN)


def _is_number(value: Any) -> bool:
    """Return whether a value can be drawn: metrics.jsonl may have been edited."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST


def _is_name(key: str) -> bool:
    """Return whether a metric's name can be that of a file, and leads nowhere else."""
    return key.isprintable() and len(key) <= 100 and not set(key) & set("/\\")


def _points(lines: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    drawn = [line for line in lines if _is_number(line["step"]) and _is_number(line.get(key))]
    return [(float(line["step"]), float(line[key])) for line in drawn]


def curves_svg(title: str, series: Mapping[str, Points]) -> str:
    """Return a line plot over steps.

    Args:
        title: heading and name of the vertical axis.
        series: name: (step, value) pairs in order; empty ones are left out.
    """
    return document([line_panel(title, series, "step")])
