"""The values of rules that depend on the situation by more than a scope."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from peftcli.analysis.advice.situation import Situation
from peftcli.protocol.rates.default_rate import DefaultRate, default_rate, rate_of_task
from peftcli.protocol.registry import registry

LEAST_STEPS = 200
"""Optimizer steps within which each method learns on the demo at its default rate."""

MOST_EPOCHS = 20


def rank_from_tokens(now: Situation) -> int:
    """Return the rank whose adapter has as many numbers as there are tokens to learn."""
    return now.rank_for_tokens


def batch_8(now: Situation) -> int:
    """Return 8 rows, or what fits."""
    return min(8, now.micro_rows or 1)


def batch_16(now: Situation) -> int:
    """Return 16 rows, or what fits."""
    return min(16, now.micro_rows or 1)


def epochs_for_steps(now: Situation) -> int:
    """Return the epochs of `LEAST_STEPS` steps of 8 rows, at least 3."""
    steps = max(1, math.ceil((now.rows or 1) / 8))
    return max(3, min(MOST_EPOCHS, math.ceil(LEAST_STEPS / steps)))


VALUES: Mapping[str, Callable[[Situation], int]] = {
    "rank_from_tokens": rank_from_tokens,
    "batch_8": batch_8,
    "batch_16": batch_16,
    "epochs_for_steps": epochs_for_steps,
}
"""By the name that follows `computed: ` in rules.yaml."""


def rate_of(now: Situation, settings: Mapping[str, Any]) -> DefaultRate:
    """Return the default rate of a recommended method.

    Args:
        settings: `method.*` keys of the recommendation, with their values.
    """
    method = registry.method(str(settings["method.name"]))
    fields = method.info.params.model_fields
    own = {key.removeprefix("method."): value for key, value in settings.items() if key.startswith("method.")}
    params = method.info.params.model_validate({key: value for key, value in own.items() if key in fields})
    return rate_of_task(default_rate(method, params, now.kind, now.width), now.task, now.loss_type)
