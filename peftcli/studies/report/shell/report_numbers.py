"""Numbers as reports write them: no more digits than their interval supports."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard

from peftcli.record.shown_numbers import is_share
from peftcli.studies.compare.comparison import Interval


@dataclass(frozen=True)
class ScoreScale:
    """How the values of a metric are written: shares as percentages, everything else as it is."""

    metric: str
    greater_is_better: bool

    @property
    def name(self) -> str:
        """Return the metric's name in words."""
        return self.metric.removeprefix("eval_").replace("_", " ")

    @property
    def title(self) -> str:
        """Return the name with its unit and direction, for an axis."""
        unit = " (%)" if self.factor == 100 else ""
        return f"{self.name}{unit}, {'higher' if self.greater_is_better else 'lower'} is better"

    @property
    def factor(self) -> float:
        """Return by what a value is multiplied to be written."""
        return 100.0 if is_share(self.metric) else 1.0

    @property
    def _unit(self) -> str:
        return "%" if self.factor == 100 else ""

    def score(self, value: float | None, interval: Interval | None = None) -> str:
        """Return a score, in digits that its interval supports; an empty text without one."""
        return "" if not known(value) else self._written(value, interval) + self._unit

    def range(self, interval: Interval | None) -> str:
        """Return an interval: `90% to 93%`; an empty text without one."""
        if interval is None or not all(map(known, interval)):
            return ""
        return " to ".join(self._written(end, interval) + self._unit for end in interval)

    def difference(self, value: float, interval: Interval | None) -> tuple[str, str]:
        """Return a difference, `2 points`, and its interval, `1 to 3`, which is empty without one."""
        decimals = supported_decimals(interval, self.factor)
        if decimals is not None and interval is not None and interval[0] * interval[1] > 0:
            tiny = min(map(abs, interval)) * self.factor  # an interval without 0 is not written as if it held 0
            decimals = max(decimals, min(decimals + 2, math.ceil(-math.log10(2 * tiny) - 1e-9)))
        shown = self._written(value, interval, decimals)
        points = "" if self.factor != 100 else " point" if float(shown) == 1 else " points"
        ends = [] if interval is None else [self._written(end, interval, decimals) for end in interval]
        return f"{shown}{points}", " to ".join(ends)

    def score_text(self, value: float | None, interval: Interval | None) -> str:
        """Return a score and its interval: `91% (89% to 93%)`."""
        between = self.range(interval)
        return self.score(value, interval) + (f" ({between})" if between else "")

    def difference_text(self, value: float, interval: Interval | None) -> str:
        """Return a difference and its interval: `2 points (1 to 3)`."""
        shown, between = self.difference(value, interval)
        return shown + (f" ({between})" if between else "")

    def _written(self, value: float, interval: Interval | None, decimals: int | None = None) -> str:
        if decimals is None:
            decimals = supported_decimals(interval, self.factor)
        if decimals is None:
            decimals = 1 if self.factor == 100 else max(0, 2 - math.floor(math.log10(abs(value) or 1.0)))
        return f"{round(value * self.factor, decimals) + 0.0:.{decimals}f}"


def supported_decimals(interval: Interval | None, factor: float = 1.0) -> int | None:
    """Return how many decimals an interval supports: its half width is at least one unit of the last.

    Returns:
        From 0 to 5; None if there is no interval, or one without width.
    """
    if interval is None or not all(map(known, interval)) or interval[0] == interval[1]:
        return None
    half = abs(interval[1] - interval[0]) / 2 * factor
    return min(5, max(0, math.ceil(-math.log10(half) - 1e-9)))


def share_text(percent: float) -> str:
    """Return a percentage in two digits: 0.013, 1.3, 100."""
    return f"{percent:.0f}" if percent >= 10 else f"{percent:.2g}"


def known(value: float | None) -> TypeGuard[float]:
    """Return whether there is a finite number."""
    return value is not None and math.isfinite(value)


def mean(values: Sequence[float]) -> float:
    """Return the mean of at least one number."""
    return math.fsum(values) / len(values)
