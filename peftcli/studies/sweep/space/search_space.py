"""The keys that a sweep searches, which of them apply under which values of others, and the points between them."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from peftcli.studies.sweep.space.search_domain import Domain

Point = dict[str, Any]
"""A value of each key that applies, by the key's path in the recipe."""


@dataclass(frozen=True)
class Dimension:
    """One key of a sweep.

    Args:
        key: dotted path in the recipe.
        domain: what it can take.
        text: as the user wrote it.
        file, line: where: a file and its line, or an option as it was typed.
        under: the dimensions' keys and values under which it applies, the outermost first; () is always.
    """

    key: str
    domain: Domain
    text: str
    file: str
    line: int | None = None
    under: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        """Its name in the study: unique, also where a key has other values under another condition."""
        conditions = ", ".join(f"{key}={json.dumps(value)}" for key, value in self.under)
        return f"{self.key} [{conditions}]" if conditions else self.key

    def applies(self, point: Point) -> bool:
        """Return whether its conditions hold at a point that has the values of all dimensions before it."""
        return all(key in point and same(point[key], value) for key, value in self.under)


def same(one: Any, other: Any) -> bool:
    """Return whether two values are written alike in a recipe: true is not 1."""
    return json.dumps(one, sort_keys=True, default=str) == json.dumps(other, sort_keys=True, default=str)


@dataclass(frozen=True)
class SearchSpace:
    """All dimensions; one whose conditions name another comes after it."""

    dimensions: tuple[Dimension, ...]

    def dimension(self, key: str, point: Point) -> Dimension | None:
        """Return the dimension from which a point has its value of `key`."""
        return next((one for one in self.dimensions if one.key == key and one.applies(point)), None)

    def keys(self) -> dict[str, str]:
        """Return what was searched by key, as it was typed, with the conditions under which it applies."""
        found: dict[str, list[str]] = {}
        for one in self.dimensions:
            under = " and ".join(f"{key} = {json.dumps(value)}" for key, value in one.under)
            found.setdefault(one.key, []).append(f"{one.text} (under {under})" if under else one.text)
        return {key: "; ".join(texts) for key, texts in found.items()}

    def unlisted(self) -> Dimension | None:
        """Return a dimension whose values cannot be listed, if there is one."""
        return next((one for one in self.dimensions if one.domain.size() is None), None)

    def grid_size(self) -> int:
        """Return how many points the grid has, without making them."""
        return self._size(0, {})

    def _size(self, index: int, point: Point) -> int:
        """Count the points from the dimension `index` on. Only values that a condition names are told apart."""
        if index == len(self.dimensions):
            return 1
        one = self.dimensions[index]
        if not one.applies(point):
            return self._size(index + 1, point)
        named = [value for other in self.dimensions for key, value in other.under if key == one.key]
        size = one.domain.size() or 0
        if not named:
            return size * self._size(index + 1, point)
        told = [value for value in one.domain.listed() or () if any(same(value, other) for other in named)]
        rest = size - len(told)
        total = sum(self._size(index + 1, {**point, one.key: value}) for value in told)
        return total + (rest * self._size(index + 1, {**point, one.key: _OTHER}) if rest else 0)

    def grid(self) -> Iterator[Point]:
        """Yield every point, the last dimension changing fastest."""
        yield from self._product(lambda one: one.domain.listed() or ())

    def corners(self, most: int) -> list[Point]:
        """Return points at which every end of every range and every listed value occurs, all of them if few.

        Args:
            most: number of corners up to which all combinations are returned.
        """
        every = list(itertools.islice(self._product(lambda one: one.domain.extremes()), most + 1))
        if len(every) <= most:
            return every
        points = [self.fill({}, _least), self.fill({}, _greatest)]
        for one in self.dimensions:
            points += [self.fill({**dict(one.under), one.key: value}, _least) for value in one.domain.extremes()]
        return points

    def sample(self, number: int, source: random.Random) -> list[Point]:
        """Return random points."""
        return [self.fill({}, lambda one: one.domain.draw(source)) for _ in range(number)]

    def fill(self, given: Point, choose: Callable[[Dimension], Any]) -> Point:
        """Return a whole point: `given` values where they apply, the others from `choose(dimension)`."""
        point: Point = {}
        for one in self.dimensions:
            if one.applies(point):
                point[one.key] = given[one.key] if one.key in given else choose(one)
        return point

    def _product(self, values: Callable[[Dimension], Iterable[Any]]) -> Iterator[Point]:
        def expand(index: int, point: Point) -> Iterator[Point]:
            if index == len(self.dimensions):
                yield point
                return
            one = self.dimensions[index]
            if not one.applies(point):
                yield from expand(index + 1, point)
                return
            for value in values(one):
                yield from expand(index + 1, {**point, one.key: value})

        return expand(0, {})


def _least(one: Dimension) -> Any:
    return one.domain.extremes()[0]


def _greatest(one: Dimension) -> Any:
    return one.domain.extremes()[-1]


_OTHER = object()
"""A value that no condition names."""


def unique_points(points: Iterable[Point]) -> list[Point]:
    """Return the points without repetitions, in order."""
    found: dict[str, Point] = {}
    for point in points:
        found.setdefault(json.dumps(point, sort_keys=True, default=str), point)
    return list(found.values())
