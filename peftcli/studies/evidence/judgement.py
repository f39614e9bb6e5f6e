"""What the scores of the same rows say about each method: its score, how far behind it is, and the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

from peftcli.inference.row_scores import RowScores
from peftcli.studies.compare.comparison import Interval, Verdict
from peftcli.studies.evidence.estimates import Estimate, Estimates, Runs
from peftcli.studies.evidence.holm import holm
from peftcli.studies.evidence.metric_sums import general_rows_of, scored_rows

LEVEL = 0.05
"""The chance of any false "behind" in a comparison whose methods are all equal, and so against the reference."""


@dataclass
class Judgement:
    """What is said about one method; the fields that a `ComparedMethod` has mean the same there.

    Args:
        seeds_covered: whether the intervals hold for other seeds, too; with one seed a method they do not.
    """

    scores: list[float]
    score: float | None
    interval: Interval | None = None
    score_before: float | None = None
    interval_before: Interval | None = None
    verdict: Verdict | None = None
    difference: float | None = None
    difference_interval: Interval | None = None
    p_best: float | None = None
    difference_to_reference: float | None = None
    reference_interval: Interval | None = None
    p_reference: float | None = None
    forgotten: float | None = None
    forgotten_interval: Interval | None = None
    seeds_covered: bool = field(default=True)

    def fields(self) -> dict[str, Any]:
        """Return what a `ComparedMethod` takes over, by the names of its fields; what is not known is left out."""
        return {name: value for name, value in vars(self).items() if name != "seeds_covered" and value is not None}


def judge(
    scored: Mapping[str, Sequence[RowScores]],
    *,
    metric: str,
    greater_is_better: bool,
    reference: str | None,
    before: Mapping[str, Sequence[RowScores]] | None = None,
) -> dict[str, Judgement]:
    """Return what the scores say about each method.

    Args:
        scored: by the method's label, one a seed; labels without scores are left out of the result.
        reference: the label that the others are measured against, if it is among them.
        before: the same rows before the first step.

    Raises:
        UserError: the scores have no such metric.
    """
    runs = {label: _runs(rows, metric) for label, rows in scored.items() if rows}
    runs = {label: each for label, each in runs.items() if all(np.isfinite(run.value) for run in each.rows)}
    estimates = Estimates(runs)
    out = {
        label: Judgement(
            scores=estimates.values[label],
            score=estimates.score(label).value,
            interval=estimates.score_interval(label),
            seeds_covered=estimates.seeds_covered,
        )
        for label in runs
    }
    if out:
        _compare(out, estimates, 1.0 if greater_is_better else -1.0, reference if reference in out else None)
    if before:
        _fill_before(out, {label: before[label] for label in out if before.get(label)}, metric)
        _fill_forgotten(out, scored, before)
    return out


def _runs(rows: Sequence[RowScores], metric: str) -> Runs:
    return Runs([scored_rows(each, metric) for each in rows], any(each.seed is not None for each in rows))


def _compare(out: dict[str, Judgement], estimates: Estimates[str], sign: float, reference: str | None) -> None:
    """Fill in differences, their p-values and the verdicts.

    The best is chosen by the very scores that are compared, and so its lead is too large by chance: every pair of
    methods is tested, and those with the best are read off. Whichever turns out best, its pairs are in that family.
    """
    best = max(out, key=lambda label: sign * (out[label].score or 0.0))
    pairs = {pair: estimates.difference(*pair).p_value for pair in combinations(out, 2)}
    of_pairs = holm(pairs)
    behind = {label: _behind(estimates.difference(best, label), sign) for label in out if label != best}
    for label, difference in behind.items():
        found = out[label]
        found.difference, found.difference_interval = difference.value, estimates.difference_interval(difference)
        found.p_best = of_pairs[(best, label) if (best, label) in of_pairs else (label, best)]
    if reference is not None:
        against = {label: _behind(estimates.difference(reference, label), sign) for label in out if label != reference}
        of_reference = holm({label: difference.p_value for label, difference in against.items()})
        for label, difference in against.items():
            found = out[label]
            found.difference_to_reference = difference.value
            found.reference_interval = estimates.difference_interval(difference)
            found.p_reference = of_reference[label]
    out[best].difference, out[best].difference_interval = 0.0, (0.0, 0.0)
    for label, found in out.items():
        found.verdict = _verdict(found, label == best, reference is not None and reference not in (best, label))


def _behind(difference: Estimate, sign: float) -> Estimate:
    """Return a difference whose positive values mean worse, from that of the other's score less the method's."""
    return Estimate(sign * difference.value, difference.error, difference.freedom)


def _verdict(found: Judgement, best: bool, against_reference: bool) -> Verdict:
    """Return the one word for a method: the first that holds.

    A method that is tied with the best may be the one to choose, whatever the reference is. One that is behind the best
    and not shown to be better than the reference (`freeze`, or the untrained base) did not earn its training. Where the
    reference is itself the best, "behind" says both.
    """
    if best:
        return "best"
    if found.p_best is None or found.p_best >= LEVEL:
        return "tied with the best"
    if against_reference and not better_than_reference(found):
        return "not better than the reference"
    return "behind"


def better_than_reference(found: Any) -> bool:
    """Tell whether a judgement, or a compared method, is shown to be better than the reference."""
    return found.p_reference is not None and found.p_reference < LEVEL and found.difference_to_reference < 0


def _fill_before(out: dict[str, Judgement], before: Mapping[str, Sequence[RowScores]], metric: str) -> None:
    """Fill in the scores before the first step.

    Methods mostly share them. They count once: copies would pass for runs of their own, whose seeds agree.
    """
    shared = {id(rows): rows for rows in before.values()}
    estimates = Estimates({key: _runs(rows, metric) for key, rows in shared.items()})
    for label, rows in before.items():
        value = estimates.score(id(rows)).value
        out[label].score_before = value if np.isfinite(value) else None
        out[label].interval_before = estimates.score_interval(id(rows))


def _fill_forgotten(
    out: dict[str, Judgement], scored: Mapping[str, Sequence[RowScores]], before: Mapping[str, Sequence[RowScores]]
) -> None:
    """Fill in by how much the loss on general text rose, paired over the paragraphs of that text."""
    runs: dict[str | int, Runs] = {}
    for label in out:
        first = before.get(label, ())
        after, earlier = _general_runs(scored[label]), _general_runs(first)
        if after.rows and earlier.rows:
            runs |= {label: after, id(first): earlier}
    estimates = Estimates(runs)
    for label in out:
        if label in runs:
            rise = estimates.difference(label, id(before[label]))
            out[label].forgotten, out[label].forgotten_interval = rise.value, rise.interval


def _general_runs(scores: Sequence[RowScores]) -> Runs:
    """Return the rows of general text of those runs that have some."""
    rows = [general for each in scores if (general := general_rows_of(each)) is not None]
    return Runs(rows, any(each.seed is not None for each in scores))
