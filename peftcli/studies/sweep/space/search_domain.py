"""What one key of a sweep can take: listed values, or a range of numbers; and how each is written."""

from __future__ import annotations

import json
import math
import random
import re
from dataclasses import dataclass, replace
from typing import Any

from peftcli.recipe.yaml.scalars import parts_at_commas, show
from peftcli.recipe.yaml.yaml_errors import YamlProblem
from peftcli.recipe.yaml.yaml_lines import parse_yaml

Number = int | float

FORMS = "log:1e-5..1e-2, 0..0.1, 4..16:4 (a step of 4) or 4,8,16"
"""How values are written, for messages."""


class WrongDomain(Exception):
    """A text that names no values; the message says why.

    Args:
        message: what is wrong.
        suggestion: the remedy.
    """

    def __init__(self, message: str, suggestion: str = f"write {FORMS}") -> None:
        self.message, self.suggestion = message, suggestion
        super().__init__(message)


@dataclass(frozen=True)
class Choices:
    """Listed values, in the order in which they were written."""

    values: tuple[Any, ...]

    @property
    def numbers(self) -> bool:
        """Whether all values are numbers, so that they have an order."""
        return all(isinstance(value, int | float) and not isinstance(value, bool) for value in self.values)

    def listed(self) -> tuple[Any, ...]:
        """Return all values."""
        return self.values

    def size(self) -> int:
        """Return how many values there are."""
        return len(self.values)

    def extremes(self) -> tuple[Any, ...]:
        """Return the values that a check must see: all of them."""
        return self.values

    def draw(self, source: random.Random) -> Any:
        """Return a random value."""
        return source.choice(self.values)

    def at_edge(self, value: Any) -> bool:
        """Return whether a value is the least or the greatest number of three or more."""
        return self.numbers and len(self.values) > 2 and value in (min(self.values), max(self.values))


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included.

    Args:
        log: equal ratios are equally likely.
        step: distance between neighbours from `low` on; None where every number is meant.
        whole: only whole numbers.
    """

    low: Number
    high: Number
    log: bool = False
    step: Number | None = None
    whole: bool = False

    def listed(self) -> tuple[Any, ...] | None:
        """Return all values, or None where they cannot be listed: a range of real numbers, a logarithmic one."""
        step = self.step if self.step is not None else 1 if self.whole and not self.log else None
        if step is None:
            return None
        numbers = (self.low + index * step for index in range(self._count(step)))
        return tuple(int(number) if self.whole else float(f"{number:.12g}") for number in numbers)

    def size(self) -> int | None:
        """Return how many values `listed` would return, without making them."""
        step = self.step if self.step is not None else 1 if self.whole and not self.log else None
        return None if step is None else self._count(step)

    def _count(self, step: Number) -> int:
        return math.floor((self.high - self.low) / step + 1e-9) + 1

    def extremes(self) -> tuple[Any, ...]:
        """Return the least and the greatest value."""
        if self.step is None:
            return self.low, self.high
        top = self.low + (self._count(self.step) - 1) * self.step
        return self.low, int(top) if self.whole else float(f"{top:.12g}")

    def draw(self, source: random.Random) -> Number:
        """Return a random value."""
        if self.step is not None:
            value: Number = self.low + source.randrange(self._count(self.step)) * self.step
        elif self.log:
            value = math.exp(source.uniform(math.log(self.low), math.log(self.high)))
        else:
            value = source.uniform(self.low, self.high)
        value = min(max(value, self.low), self.high)
        return round(value) if self.whole else float(f"{value:.12g}")

    def at_edge(self, value: Any) -> bool:
        """Return whether a value lies within 5% of the range of one of its ends."""
        low, high = self.extremes()
        scale = math.log if self.log else float
        position = (scale(value) - scale(low)) / (scale(high) - scale(low))
        return not 0.05 < position < 0.95


Domain = Choices | Range

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"(log:)?\s*({_NUMBER})\s*\.\.\s*({_NUMBER})(?:\s*:\s*({_NUMBER}))?")


def read_domain(text: str) -> Domain:
    """Return what a text such as `log:1e-5..1e-2`, `4..16:4` or `4,8,16` means.

    Raises:
        WrongDomain: it means nothing, or no value at all.
    """
    text = text.strip()
    if not text:
        raise WrongDomain("no values are given")
    match = _RANGE.fullmatch(text)
    if match:
        return _range(text, *match.groups())
    if text.startswith("log:") or _half_a_range(text):
        raise WrongDomain(f"{text!r} is no range of numbers")
    return choices(read_value(part) for part in parts_at_commas(text))


def choices(values: Any) -> Choices:
    """Return listed values.

    Raises:
        WrongDomain: there is none, or one stands twice.
    """
    values = tuple(values)
    if not values:
        raise WrongDomain("an empty list leaves nothing to try")
    texts = [json.dumps(value, sort_keys=True, default=str) for value in values]
    for place, text in enumerate(texts):
        if text in texts[:place]:
            raise WrongDomain(f"{show(values[place])} is given twice", "keep one of the two")
    return Choices(values)


def read_value(text: str) -> Any:
    """Return one value as a recipe would read it; names of environment variables stay names.

    Raises:
        WrongDomain: it is not YAML.
    """
    if not text.strip():
        raise WrongDomain("a value is empty: there is a comma too many", "remove it, or write null")
    try:
        return parse_yaml(text, {}).data
    except YamlProblem as error:
        raise WrongDomain(f"{text!r}: {error.message}", error.suggestion or "quote it") from error


def fitted(domain: Domain, *, whole: bool) -> Domain:
    """Return a range as one of whole numbers, or of real ones; listed values as they are.

    Raises:
        WrongDomain: whole numbers are asked for, and an end or the step is none.
    """
    if isinstance(domain, Choices):
        return domain
    numbers = [number for number in (domain.low, domain.high, domain.step) if number is not None]
    if not whole:
        return replace(domain, low=float(domain.low), high=float(domain.high), whole=False)
    broken = [number for number in numbers if float(number) != int(number)]
    if broken:
        raise WrongDomain(f"{broken[0]:g} is not a whole number", "this key takes whole numbers")
    step = None if domain.step is None else int(domain.step)
    return Range(int(domain.low), int(domain.high), domain.log, step, whole=True)


def _range(text: str, log: str | None, first: str, last: str, distance: str | None) -> Range:
    low, high = _number(first), _number(last)
    step = None if distance is None else _number(distance)
    if low >= high:
        remedy = f"write {last}..{first}" if low > high else f"write the one value: {first}"
        raise WrongDomain(f"the range {text} is empty", remedy)
    if log and low <= 0:
        raise WrongDomain(f"{text}: a logarithmic range begins above 0", "for instance log:1e-6..1e-2")
    if log and step is not None:
        raise WrongDomain(f"{text}: a logarithmic range has no step", "list the values instead: 1e-4,1e-3,1e-2")
    if step is not None and not 0 < step <= high - low:
        raise WrongDomain(f"{text}: a step of {distance} does not fit the range", f"above 0, at most {high - low:g}")
    whole = all(isinstance(number, int) for number in (low, high, *(() if step is None else (step,))))
    return Range(low, high, bool(log), step, whole)


def _number(text: str) -> Number:
    number: Number = int(text) if re.fullmatch(r"[-+]?\d+", text) else float(text)
    if not math.isfinite(number) or abs(number) > 1e300:
        raise WrongDomain(f"{text} is too large a number")
    return number


def _half_a_range(text: str) -> bool:
    """Return whether a text looks like a range with one end that is no number: `1e-5..x`, `4..`."""
    first, dots, last = text.partition("..")
    if not dots or "," in text:
        return False
    return any(re.fullmatch(_NUMBER, end.strip()) for end in (first, last.partition(":")[0]))
