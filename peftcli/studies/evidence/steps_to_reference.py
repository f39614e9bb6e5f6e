"""How many steps a method took to reach the reference's score: slow starts are what these methods are known for."""

from __future__ import annotations

from collections.abc import Sequence

from peftcli.studies.compare.comparison import Comparison, Curve


def fill_steps_to_reference(comparison: Comparison) -> None:
    """Write `steps_to_reference` of each method but the reference, from its evaluations while training.

    These may be on some of the rows: the reference's score is that of its own last evaluation, on the same rows. A base
    was not trained and has no evaluation: its score of all rows is taken, so that the step is off by what the rows of
    the curves are easier or harder. (Its score of those rows is where each method starts: every step would be 0.)
    """
    reference = comparison.reference_method
    if reference is None or reference.score is None:
        return
    own = [curve.scores[-1] for curve in reference.curves if curve.scores]
    score = sum(own) / len(own) if own else reference.score
    for row in comparison.methods:
        if row is not reference:
            row.steps_to_reference = steps_until(row.curves, score, comparison.greater_is_better)


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
