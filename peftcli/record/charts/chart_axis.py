"""An axis: where a value lies, and which values are written beside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

Ticks = tuple[tuple[float, str], ...]


@dataclass(frozen=True)
class Axis:
    """One direction of a chart.

    Args:
        title: what the values are, with their unit.
        low, high: the ends, `low` < `high`; on a logarithmic axis both are positive.
        ticks: values with their texts, in order.
        log: whether equal ratios take equal room.
    """

    title: str
    low: float
    high: float
    ticks: Ticks
    log: bool = False

    def share(self, value: float) -> float:
        """Return where a value lies, from 0 at `low` to 1 at `high`."""
        if self.log:
            return (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return (value - self.low) / (self.high - self.low)


def linear_axis(
    title: str,
    values: Iterable[float],
    write: Callable[[float], str] | None = None,
    *,
    wanted: int = 5,
    room: float = 0.06,
    from_zero: bool = False,
) -> Axis:
    """Return an axis on which equal differences take equal room.

    Args:
        title: see `Axis`.
        values: what has to fit.
        write: a value as text; as many decimals as the ticks need by default.
        wanted: about how many ticks.
        room: share of the span that stays free at each end.
        from_zero: start at 0.
    """
    found = list(values) or [0.0, 1.0]
    low, high = min(found), max(found)
    if high == low:  # one value lies in the middle
        half = (abs(low) or 1.0) / 2
        low, high = low - half, high + half
    if from_zero and min(found) >= 0:
        low = 0.0
    span = high - low
    start = low if from_zero and low == 0 else low - room * span
    low, high = start, high + room * span
    step = _step((high - low) / wanted, whole=all(float(value).is_integer() for value in found))
    numbers = [index * step for index in range(math.ceil(low / step), math.floor(high / step) + 1)]
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    if round(step, decimals) != round(step, decimals + 6):  # steps of 2.5
        decimals += 1
    texts = [write(number) if write else _plain(number, decimals) for number in numbers]
    return Axis(title, low, high, tuple(zip(numbers, texts, strict=True)))


def log_axis(title: str, values: Iterable[float], write: Callable[[float], str] | None = None) -> Axis:
    """Return an axis on which equal ratios take equal room, for positive values.

    Args:
        title: see `Axis`.
        values: what has to fit; those that are not positive are left out.
        write: a value as text.
    """
    found = [value for value in values if value > 0] or [1.0, 10.0]
    low, high = min(found), max(found)
    ratio = max(high / low, 2.0) ** 0.06
    low, high = low / ratio, high * ratio
    if low * 1.5 > high:
        low, high = low / 1.5, high * 1.5
    decades = math.log10(high / low)
    factors: Sequence[float] = (1,) if decades > 2.2 else (1, 3) if decades > 1.2 else (1, 2, 3, 5, 7)
    every = max(1, math.ceil(decades / 7)) if factors == (1,) else 1
    numbers = [
        factor * 10.0**power
        for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        if power % every == 0
        for factor in factors
    ]
    shown = [number for number in numbers if low <= number <= high]
    return Axis(title, low, high, tuple((number, (write or short_number)(number)) for number in shown), log=True)


def category_axis(title: str, names: Sequence[str]) -> Axis:
    """Return an axis of names, at 0, 1, 2 and so on."""
    ticks = tuple((float(index), name) for index, name in enumerate(names))
    return Axis(title, -0.5, max(0.5, len(names) - 0.5), ticks)


def short_number(value: float) -> str:
    """Return a number in few characters: 12k, 1.5M, 0.02, 3e-5."""
    size = abs(value)
    for factor, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if size >= factor * 0.9995:
            return f"{value / factor:.3g}{unit}"
    if size >= 0.01 or size == 0:
        return f"{value:.3g}"
    mantissa, _, power = f"{value:.2e}".partition("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(power)}"


def _plain(number: float, decimals: int) -> str:
    if decimals > 5 or abs(number) >= 1e5:
        return short_number(number)
    return f"{number + 0.0:,.{decimals}f}"


def _step(rough: float, *, whole: bool) -> float:
    """Return the least of 1, 2, 2.5 and 5 times a power of ten that is not below `rough`; `whole`: a whole number."""
    power = 10.0 ** math.floor(math.log10(rough))
    steps = [factor * power for factor in (1.0, 2.0, 2.5, 5.0, 10.0) if factor * power >= rough * (1 - 1e-9)]
    return max(1.0, next(step for step in steps if step.is_integer() or step < 1)) if whole else steps[0]
