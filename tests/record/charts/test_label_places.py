"""Names beside marks do not cover each other, whatever the crowd; what matters most keeps its name."""

from __future__ import annotations

import random
from itertools import combinations

import pytest

from peftcli.record.charts.label_places import Wanted, place_labels


@pytest.mark.parametrize("number", [1, 25, 40])
def test_labels_do_not_cover_each_other(number: int) -> None:
    draw = random.Random(number)
    wanted = [
        Wanted(draw.gauss(400, 90), draw.gauss(200, 40), f"method-{index}:r=16", str(index), 0 if index == 0 else 2)
        for index in range(number)
    ]
    labels = place_labels(wanted, [], (60, 20, 900, 440))
    boxes = [label.box for label in labels]
    crossed = [
        (one, other)
        for one, other in combinations(boxes, 2)
        if one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
    ]
    assert crossed == []
    assert all(left >= 60 and right <= 900 and top >= 20 and bottom <= 440 for left, top, right, bottom in boxes)
    assert labels[0].text == wanted[0].name
    assert {label.text for label in labels} <= {text for mark in wanted for text in (mark.name, mark.number)}


def test_a_name_without_room_becomes_its_number() -> None:
    close = [Wanted(50, 50, "a-long-name-that-needs-room", str(index), 2) for index in range(12)]
    labels = place_labels(close, [], (0, 0, 200, 100))
    assert any(not label.whole and label.leader is not None for label in labels)
