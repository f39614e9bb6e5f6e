"""The course of the learning rate: a factor on the peak rate, as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Callable

from peftcli.recipe.schema import TrainingSpec

Curve = Callable[[float], float]

CURVES: dict[str, Curve] = {
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
    "constant": lambda progress: 1.0,
    "constant_with_warmup": lambda progress: 1.0,
    "polynomial": lambda progress: (1.0 - progress) ** 2,
}
"""From the share of the steps after the warm-up that are done, 0 to 1, to the factor."""


def warmup_steps(spec: TrainingSpec, total_steps: int) -> int:
    """Return the steps of linear warm-up: `warmup_steps`, else `warmup_ratio` of all steps rounded up."""
    return min(total_steps, spec.warmup_steps or math.ceil(spec.warmup_ratio * total_steps))


def learning_rate_factor(spec: TrainingSpec, total_steps: int) -> Callable[[int], float]:
    """Return the factor on the peak learning rate for the step with a given index, counted from 0."""
    warmup = warmup_steps(spec, total_steps)
    curve = CURVES[spec.lr_scheduler_type]
    after = max(1, total_steps - warmup)

    def factor(index: int) -> float:
        if index < warmup:
            return (index + 1) / (warmup + 1)  # never 0: a step without a rate would be a wasted batch
        return curve(min(1.0, (index - warmup) / after))

    return factor
