"""Whether an evaluation is the best so far, and whether it counts against the patience of early stopping."""

from __future__ import annotations

import math
from dataclasses import dataclass

from peftcli.inference.metrics import greater_is_better
from peftcli.recipe.schema import TrainingSpec


@dataclass(frozen=True)
class Verdict:
    """What an evaluation means for the run.

    Args:
        keep: whether this adapter replaces the one that is kept as the best.
        improved: whether the metric improved by more than the threshold: the count of bad evaluations starts again.
        counts: whether early stopping looks at it at all.
    """

    keep: bool
    improved: bool
    counts: bool


def rises(spec: TrainingSpec) -> bool:
    """Return whether a larger value of the metric that chooses the best adapter is better."""
    return greater_is_better(spec.metric_for_best_model) if spec.greater_is_better is None else spec.greater_is_better


def judge(
    value: float, best: float | None, *, greater: bool, threshold: float, settled: bool, best_settled: bool
) -> Verdict:
    """Compare an evaluation with the best so far.

    A value that is no number (an undefined metric) is never better than a number; where there was no number yet, the
    latest adapter is kept. The first settled adapter is better than all that were not, whatever they reached, and
    evaluations before it count for nothing: while a method prunes, the loss is expected to rise.

    Args:
        value: of the metric now.
        best: of the adapter that is kept; None or no number where there is none.
        greater: whether a larger value is better.
        threshold: the smallest change that is an improvement.
        settled: whether the adapter has its final form now.
        best_settled: whether the one that is kept has.
    """
    known = best is not None and not math.isnan(best)
    if math.isnan(value):
        return Verdict(keep=not known and settled >= best_settled, improved=False, counts=settled)
    if not known or (settled and not best_settled):
        return Verdict(keep=True, improved=True, counts=settled)
    gain = (value - float(best or 0.0)) * (1 if greater else -1)
    return Verdict(keep=gain > 0 and settled >= best_settled, improved=gain > threshold, counts=settled)


def direction_notes(spec: TrainingSpec) -> list[str]:
    """Return what the user should know where a recipe keeps the adapter with the worst value of a metric."""
    asked, name = spec.greater_is_better, spec.metric_for_best_model
    if asked is None or asked == greater_is_better(name):
        return []
    kept, better = ("largest", "smaller") if asked else ("smallest", "larger")
    told = f"training.greater_is_better is {str(asked).lower()}, so the adapter with the {kept} {name} is kept"
    return [f"{told}: a {better} one is better"]
