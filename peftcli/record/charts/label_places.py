"""Names beside the marks of a chart: where they fit without covering each other.

What matters most is placed first. A name without room is replaced by a number, which a legend explains; where even
that has no room beside its mark, it stands apart with a line to it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from peftcli.record.charts.drawing import text_width

Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""

HEIGHT = 13
_SIDES = ((1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (1, 1), (-1, -1), (-1, 1))
_RINGS = (16, 24, 34, 46, 60, 78, 98, 120)


@dataclass(frozen=True)
class Wanted:
    """A mark at (x, y) that wants its `name` beside it, or its `number`; lower `rank` goes first."""

    x: float
    y: float
    name: str
    number: str
    rank: int


@dataclass(frozen=True)
class Label:
    """A text with its box; `leader` is the line from its mark, if it stands apart; `whole` if it is the name."""

    text: str
    box: Box
    whole: bool
    leader: tuple[float, float, float, float] | None = None


def place_labels(wanted: Sequence[Wanted], taken: Sequence[Box], area: Box, *, names_apart: int = 1) -> list[Label]:
    """Return a label for each mark, in the order of `wanted`.

    Args:
        wanted: the marks.
        taken: what labels should not cover: marks and error bars.
        area: where they have to stay.
        names_apart: marks of a rank up to this keep their name with a line to it where there is no room beside them.
    """
    boxes = [*taken, *((mark.x - 6, mark.y - 6, mark.x + 6, mark.y + 6) for mark in wanted)]
    labels: dict[int, Label] = {}
    for index in sorted(range(len(wanted)), key=lambda index: wanted[index].rank):
        labels[index] = _label(wanted[index], boxes, area, names_apart)
        boxes.append(labels[index].box)
    return [labels[index] for index in range(len(wanted))]


def _label(mark: Wanted, boxes: Sequence[Box], area: Box, names_apart: int) -> Label:
    """Return the first place that is free, from the best to the least."""
    tries = [(mark.name, _beside(mark, mark.name), False)]
    if mark.rank <= names_apart:
        tries.append((mark.name, _around(mark, mark.name), True))
    tries += [(mark.number, _beside(mark, mark.number), False), (mark.number, _around(mark, mark.number), True)]
    for text, places, apart in tries:
        for box in places:
            if _within(box, area) and not any(_meet(box, other) for other in boxes):
                return Label(text, box, text == mark.name, _leader(mark, box) if apart else None)
    return Label(mark.number, next(_beside(mark, mark.number)), False)


def _beside(mark: Wanted, text: str) -> Iterator[Box]:
    """Yield the boxes of a text at the sides and corners of its mark."""
    width = text_width(text)
    for across, down in _SIDES:
        gap = 9 if not (across and down) else 6
        left = mark.x + (gap if across > 0 else -gap - width if across < 0 else -width / 2)
        middle = mark.y + down * (gap + HEIGHT / 2)
        yield left, middle - HEIGHT / 2, left + width, middle + HEIGHT / 2


def _around(mark: Wanted, text: str) -> Iterator[Box]:
    """Yield the boxes of a text on rings around its mark, the nearest first."""
    width = text_width(text)
    for ring in _RINGS:
        for turn in range(24):
            angle = 2 * math.pi * turn / 24 - math.pi / 2
            x, y = mark.x + ring * math.cos(angle), mark.y + ring * math.sin(angle)
            left = x if math.cos(angle) > 0.2 else x - width if math.cos(angle) < -0.2 else x - width / 2
            yield left, y - HEIGHT / 2, left + width, y + HEIGHT / 2


def _leader(mark: Wanted, box: Box) -> tuple[float, float, float, float]:
    """Return a line from a mark to the nearest edge of a box."""
    x, y = min(max(mark.x, box[0]), box[2]), min(max(mark.y, box[1] + 2), box[3] - 2)
    length = math.hypot(x - mark.x, y - mark.y) or 1.0
    return mark.x + 6 * (x - mark.x) / length, mark.y + 6 * (y - mark.y) / length, x, y


def _within(box: Box, area: Box) -> bool:
    return area[0] <= box[0] and area[1] <= box[1] and box[2] <= area[2] and box[3] <= area[3]


def _meet(one: Box, other: Box) -> bool:
    return one[0] < other[2] + 2 and other[0] < one[2] + 2 and one[1] < other[3] and other[1] < one[3]
