"""The bounds of the scaling plots: a quotient of two points within its limit, beyond it, and what was measured."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def scaling() -> Iterator[Any]:
    """The script, which imports others as `python benchmarks/scaling.py` lets it."""
    sys.path.insert(0, str(BENCHMARKS))
    import scaling

    yield scaling
    sys.path.remove(str(BENCHMARKS))


def points(highest: float) -> list[dict[str, Any]]:
    """Two points along the rank."""
    both = ((1, 100.0, 10.0), (256, 80.0, highest))
    return [
        {"axis": "rank", "x": x, "side": "ours", "tokens_per_second": speed, "memory_bytes": memory}
        for x, speed, memory in both
    ]


def test_a_bound_holds_or_is_passed(scaling: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert scaling.passed(points(12.0)) == 0
    assert "speed with rank 256 (ours), beside 1 (ours): 0.80 (at least 0.7)\n" in capsys.readouterr().out
    assert scaling.passed(points(14.0)) == 1
    assert "memory with rank 256 (ours), beside 1 (ours): 1.40 (at most 1.3): passed\n" in capsys.readouterr().out
    assert scaling.passed([]) == 0


def test_what_is_stored_is_within_every_bound(scaling: Any) -> None:
    stored = json.loads((BENCHMARKS / "plots/scaling.json").read_text(encoding="utf-8"))["points"]
    assert len(list(scaling.held(stored))) == len(scaling.BOUNDS)
    assert scaling.passed(stored) == 0
