"""What a finished run's numbers say against it: an adapter that is no better than none, a loss that rose."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from peftcli.record.shown_numbers import metric as shown

RISE = 1.5
"""A training loss that ends above this many times the first one, and by `LEAST_RISE` at least, has risen."""
LEAST_RISE = 0.1

REMEDY = "lower training.learning_rate, or look at the rows; more steps help where the loss was still falling"


def outcome_notes(
    before: Mapping[str, Any] | None,
    after: Mapping[str, Any] | None,
    *,
    by: str,
    greater: bool,
    losses: Sequence[float],
) -> list[str]:
    """Return what the user should read before using the result; nothing where the run did what it was for.

    Args:
        before: metrics before the first step; None where nothing was evaluated then.
        after: metrics of the adapter that is kept; None without validation rows.
        by: the metric that chose it.
        greater: whether a larger value of it is better.
        losses: of the logged steps, in order.
    """
    was, now = (_number((found or {}).get(by)) for found in (before, after))
    if was is not None and now is not None:
        if now > was if greater else now < was:
            return []
        numbers = f"{by} {shown(by, was)} before, {shown(by, now)} at best"
        return [f"no evaluation was better than the one before training ({numbers}): {REMEDY}"]
    if not losses:
        return []
    ended = losses[-max(1, len(losses) // 10) :]
    first, last = losses[0], sum(ended) / len(ended)
    if last <= max(RISE * first, first + LEAST_RISE):
        return []
    return [f"the training loss rose from {shown('loss', first)} to {shown('loss', last)}: {REMEDY}"]


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None
