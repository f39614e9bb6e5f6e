"""The learning rate's course: a factor on the peak (`optim.chosen_rate`) at every step.

The schedules are transformers' own. Parameters with a rate of their own (a head, `lr_groups`, LoRA+) have another peak,
`optim.parameter_groups`, and the same course.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch.optim import Optimizer

from peftcli.recipe.schema import TrainingSpec

Curve = Callable[[float, float], float]

POLYNOMIAL_END = 1e-7
"""Learning rate after the last step of `polynomial`, transformers' `lr_end`; its power is 1, as transformers' is."""


def _polynomial(progress: float, peak: float) -> float:
    end = min(1.0, POLYNOMIAL_END / peak)
    return (1.0 - end) * (1.0 - progress) + end


CURVES: dict[str, Curve] = {
    "linear": lambda progress, _peak: 1.0 - progress,
    "cosine": lambda progress, _peak: 0.5 * (1.0 + math.cos(math.pi * progress)),
    "constant": lambda _progress, _peak: 1.0,
    "constant_with_warmup": lambda _progress, _peak: 1.0,
    "polynomial": _polynomial,
}
"""From the share of the steps after the warm-up that are done, 0 to 1, and the peak rate, to the factor."""


def warmup_steps(spec: TrainingSpec, total_steps: int) -> int:
    """Return the steps of linear warm-up: `warmup_steps`, else `warmup_ratio` of all steps rounded up."""
    return min(total_steps, spec.warmup_steps or math.ceil(spec.warmup_ratio * total_steps))


def learning_rate_factor(spec: TrainingSpec, total_steps: int, peak: float) -> Callable[[int], float]:
    """Return the factor on the learning rate for the step with a given index, counted from 0.

    The first step of transformers' warm-up has a rate of 0 and trains nothing. It is left out: step i here is step
    i + 1 of transformers' schedule with one warm-up step and one step more.

    Args:
        peak: the run's learning rate, of the parameters without a rate of their own.
    """
    warmup = warmup_steps(spec, total_steps)
    curve = CURVES[spec.lr_scheduler_type]
    after = max(1, total_steps - warmup)

    def factor(index: int) -> float:
        if index < warmup:
            return (index + 1) / (warmup + 1)
        return curve(min(1.0, (index - warmup) / after), peak)

    return factor


def keep_peak_rates(optimizer: Optimizer) -> None:
    """Note in every parameter group that its rate is the peak; `set_learning_rates` goes by it."""
    for group in optimizer.param_groups:
        group["peak_lr"] = group["lr"]


def set_learning_rates(optimizer: Optimizer, factor: float) -> None:
    """Set every group's learning rate to this share of its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
