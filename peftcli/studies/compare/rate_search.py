"""Which learning rates are tried for a method, which of them are stopped halfway, and which is the best.

The window is centred on the method's default, or on the rate that its recipe asks for; neighbours differ by a factor of
3. Where the best rate is the lowest or the highest that was tried, one beyond it is tried, at most twice.

What the held-out rows cannot tell decides nothing: a rate is stopped only where it is clearly behind, of rates that
score alike the one next to the middle is taken, and a rate that does not hold on a fresh seed makes way for a lower
one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from peftcli.studies.engine.trial import CurvePoint, Trial
from peftcli.studies.evidence.metric_sums import bounds_of

FACTOR = 3.0
"""Between neighbouring rates: between two rates that differ so, scores hardly tell a third."""

BEYOND = 2
"""How often the window is made wider by one rate."""

CLEAR = 0.05
"""Share of a loss by which another must differ to be clearly better or worse. Of a metric with bounds it is one
standard error of the mean of so many coins, twice: 1 / sqrt(rows) of what lies between its bounds."""

ALIKE = 0.2
"""Share of a clear difference below which two rates score alike."""

HIGHEST = 100.0
"""The schema's bound of a learning rate."""


def rate_window(middle: float, count: int) -> list[float]:
    """Return so many rates around the middle, which comes first as it is, then the others by their distance from it.

    >>> rate_window(0.002, 3)
    [0.002, 0.00067, 0.006]
    """
    steps = sorted(range(-((count - 1) // 2), count // 2 + 1), key=lambda step: (abs(step), step))
    return list(dict.fromkeys(two_digits(middle * FACTOR**step) if step else middle for step in steps))


def two_digits(rate: float) -> float:
    """Return a rate with the digits that it is written with, below the schema's bound."""
    return min(HIGHEST, float(f"{rate:.2g}"))


def beyond(scores: Mapping[float, float | None], tried: int, *, greater_is_better: bool) -> float | None:
    """Return the rate to try next, if the best one lies at the edge of those that were tried.

    Args:
        scores: by rate; None of one that diverged or failed.
        tried: how many rates the first window had.
    """
    if len(scores) >= tried + BEYOND or tried < 2:
        return None
    best = best_rate(scores, greater_is_better=greater_is_better)
    if best is None:
        return two_digits(min(scores) / FACTOR)  # all diverged
    if best == min(scores):
        return two_digits(best / FACTOR)
    if best == max(scores) and best < HIGHEST:
        return two_digits(best * FACTOR)
    return None


def best_rate(scores: Mapping[float, float | None], *, greater_is_better: bool) -> float | None:
    """Return the rate with the best score; of equal ones the lowest; None if no rate has a score."""
    known = {rate: score for rate, score in scores.items() if score is not None}
    if not known:
        return None
    sign = -1.0 if greater_is_better else 1.0
    return min(known, key=lambda rate: (sign * known[rate], rate))


def chosen_rate(
    scores: Mapping[float, float | None], middle: float, metric: str, rows: int, *, greater_is_better: bool
) -> float | None:
    """Return the best rate, or of those that score like it the one next to the middle of the window.

    Where runs are too short to show a difference, the best of several rates is the luck of a few rows, and what is
    known of the method in general, its default, is the better guess.
    """
    best = best_rate(scores, greater_is_better=greater_is_better)
    if best is None:
        return None
    top = scores[best]
    assert top is not None
    near = ALIKE * clear_difference(metric, top, rows)
    alike = [rate for rate, score in scores.items() if score is not None and abs(score - top) <= near]
    return min(alike, key=lambda rate: (abs(math.log(rate / middle)), rate))


def clear_difference(metric: str, value: float, rows: int) -> float:
    """Return how far another value of the metric on so many held-out rows is from this one if it clearly differs."""
    low, high = bounds_of(metric)
    return (high - low) / max(1, rows) ** 0.5 if math.isfinite(high - low) else CLEAR * abs(value)


def at_edge(scores: Mapping[float, float | None], rate: float) -> bool:
    """Return whether a rate is the lowest or the highest that was tried, of several."""
    return len(scores) > 1 and rate in (min(scores), max(scores))


class HalfwayStop:
    """Stops a rate halfway if half of the method's rates were clearly better at the same step.

    Args:
        metric: name of what is compared, such as `eval_loss`.
        step: at which it is decided.
        known: curves of rates that were trained before this start of the command, by the trial's name.
        rivals: for each trial's name, the names of the method's rates, its own included.
    """

    def __init__(
        self,
        metric: str,
        step: int,
        rivals: Mapping[str, Sequence[str]],
        known: Mapping[str, Sequence[CurvePoint]],
        *,
        greater_is_better: bool,
    ) -> None:
        self._metric, self._step, self._rivals = metric, step, rivals
        self._sign = -1.0 if greater_is_better else 1.0
        self._curves: dict[str, Sequence[CurvePoint]] = dict(known)

    def should_stop(self, trial: Trial, curve: Sequence[CurvePoint]) -> bool:
        """Return whether this trial belongs to the worse half at the step of the decision."""
        self._curves[trial.name] = curve
        names = self._rivals.get(trial.name, ())
        own = self._at_step(trial.name)
        if not names or curve[-1].step != self._step or own is None:  # one that is not finite ends by itself
            return False
        others = [value for name in names if name != trial.name and (value := self._at_step(name)) is not None]
        clear = clear_difference(self._metric, own, int(curve[-1].metrics.get("eval_rows", 1)))
        return sum(value < own - clear for value in others) >= (len(names) + 1) // 2

    def _at_step(self, name: str) -> float | None:
        """Return a trial's value at the step, so oriented that smaller is better; None if there is none yet."""
        for point in self._curves.get(name, ()):
            value = point.metrics.get(self._metric)
            if point.step == self._step and value is not None and value == value:
                return self._sign * value
        return None
