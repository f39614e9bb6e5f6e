"""A curve's numbers stand where their values are, and are whole where steps are."""

from __future__ import annotations

import re

import pytest

from peftcli.record.svg import line_panel


@pytest.mark.parametrize("last", [1, 2, 3, 4, 8, 17, 1000])
def test_a_written_step_stands_under_its_point(last: int) -> None:
    _, drawn = line_panel("loss", {"loss": [(float(x), 1 / x) for x in range(1, last + 1)]}, "step")
    written = re.findall(r'<text x="([\d.]+)" y="368" text-anchor="middle">(\d+)</text>', drawn)
    found = re.search(r'points="([^"]*)"', drawn)
    assert found is not None
    points = [point.split(",")[0] for point in found.group(1).split()]
    assert written and len({text for _, text in written}) == len(written)
    assert all(place == points[int(text) - 1] for place, text in written if int(text) > 0)
    heights = re.findall(r'text-anchor="end">(-?[\d.]+)</text>', drawn)
    assert len(set(heights)) == len(heights) and "-" not in "".join(heights)
