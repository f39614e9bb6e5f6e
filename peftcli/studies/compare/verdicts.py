"""What the scores of a comparison can and cannot decide, written into its record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from peftcli.inference.row_scores import RowScores
from peftcli.studies.compare.asked import BASE
from peftcli.studies.compare.comparison import ComparedMethod, Comparison
from peftcli.studies.engine.measured_where import measured_here
from peftcli.studies.evidence.explain import explain
from peftcli.studies.evidence.judgement import judge


def with_verdicts(
    comparison: Comparison, scored: Mapping[str, Sequence[RowScores]], before: Sequence[RowScores]
) -> Comparison:
    """Return the comparison with intervals, verdicts and words; of a base as the reference, with a row for it.

    Args:
        scored: scores of held-out rows by label, one a seed.
        before: those of the model before training.

    Raises:
        UserError: the scores have no such metric.
    """
    rows, every = list(comparison.methods), dict(scored)
    if comparison.reference == BASE and before:
        rows.append(ComparedMethod(BASE, BASE, trainable=0, saved=0, percent=0.0))
        every[BASE] = before
    judged = judge(
        every,
        metric=comparison.metric,
        greater_is_better=comparison.greater_is_better,
        reference=comparison.reference,
        before=dict.fromkeys(scored, before) if before else None,
    )
    rows = [
        replace(row, **judged[row.label].fields()) if row.label in judged else _unjudged(row, comparison.metric)
        for row in rows
    ]
    judged_all = replace(comparison, methods=rows, **measured_here())
    explain(judged_all)
    return judged_all


def _unjudged(row: ComparedMethod, metric: str) -> ComparedMethod:
    """Return the row of a method without a verdict; of one whose runs finished, with the reason."""
    if row.status != "finished":
        return row
    why = f"{metric} of the held-out rows is not a finite number"
    return replace(row, reason=why if row.reason is None else f"{row.reason}; {why}")
