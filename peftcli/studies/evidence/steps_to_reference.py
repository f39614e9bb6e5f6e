"""How many steps a method took to reach the reference's score: slow starts are what these methods are known for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from peftcli.studies.compare.asked import BASE
from peftcli.studies.compare.comparison import ComparedMethod, Comparison, Curve


def fill_steps_to_reference(comparison: Comparison) -> None:
    """Write `steps_to_reference` of each method but the reference, from its evaluations while training.

    These may be on some of the rows: the reference's score is that of its own last evaluation, on the same rows. The
    score of a base, which was not trained, is where each method starts: what counts is the first evaluation after that
    which is as good. Where a method was not evaluated at its start, that is the base's score of all rows.
    """
    reference = comparison.reference_method
    if reference is None or reference.score is None:
        return
    own = [curve.scores[-1] for curve in reference.curves if curve.scores]
    score = sum(own) / len(own) if own else reference.score
    for row in comparison.methods:
        if row is reference:
            continue
        curves = row.curves
        if reference.label == BASE:
            score, curves = _start(row, reference.score), [_after_start(curve) for curve in curves]
        row.steps_to_reference = steps_until(curves, score, comparison.greater_is_better)


def _start(row: ComparedMethod, otherwise: float) -> float:
    """Return the mean score of a method's evaluations before the first step."""
    first = [curve.scores[0] for curve in row.curves if curve.steps[:1] == [0]]
    return sum(first) / len(first) if first else otherwise


def _after_start(curve: Curve) -> Curve:
    """Return a curve without the evaluation before the first step."""
    start = int(curve.steps[:1] == [0])
    return replace(curve, steps=curve.steps[start:], scores=curve.scores[start:], losses=curve.losses[start:])


def steps_until(curves: Sequence[Curve], score: float, greater_is_better: bool) -> int | None:
    """Return the first step at which the mean over seeds is as good as `score`; None if it never was.

    Only steps count at which every seed was evaluated: a mean over fewer seeds would jump.
    """
    if not curves:
        return None
    by_seed = [dict(zip(curve.steps, curve.scores, strict=True)) for curve in curves]
    shared = sorted(set.intersection(*(set(each) for each in by_seed)))
    sign = 1.0 if greater_is_better else -1.0
    for step in shared:
        mean = sum(each[step] for each in by_seed) / len(by_seed)
        if sign * (mean - score) >= 0:
            return step
    return None
