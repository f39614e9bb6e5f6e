"""Scores of rows, made without a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peftcli.inference.row_scores import RowScores


def with_losses(losses: Sequence[float], seed: int | None = 0, identity: str = "rows", **more: Any) -> RowScores:
    """Return scores of rows with these losses, one supervised token each; `more` are fields of `RowScores`."""
    known: dict[str, Any] = {
        "kind": "text",
        "sets": {"": len(losses)},
        "sources": ["a.jsonl", "b.jsonl"],
        "places": [[0, row] for row in range(len(losses))],
        "counts": [1.0] * len(losses),
    }
    return RowScores(seed=seed, identity=identity, loss_sums=list(losses), **{**known, **more})


def with_right(right: Sequence[int], seed: int | None = 0, **more: Any) -> RowScores:
    """Return scores of rows of one class each, right (1) or wrong (0)."""
    rows = len(right)
    return with_losses([1.0] * rows, seed, kind="single_label", predictions=list(right), references=[1] * rows, **more)
