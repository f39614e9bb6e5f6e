"""What a run costs: a start, so much for each step and for each evaluation; measured on a short run of the method."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from peftcli.record.step_lines import StepLines
from peftcli.studies.engine.trial import TrialResult

TIMED_STEPS = 8
"""Optimizer steps of a run that is made to measure its speed."""

TIMED_ROWS = 32
"""Held-out rows of its one evaluation, which is made to measure the time of a row."""


@dataclass(frozen=True)
class RunLength:
    """How much a run does.

    Args:
        steps: optimizer steps.
        every: steps between two evaluations.
        rows: held-out rows of an evaluation while it trains.
        scored: rows that are scored when the run is opened again afterwards; 0 for a run that is not.
        first: evaluate before the first step, too.
        full: steps that the recipe asks for; 0 leaves its warm-up as it is.
    """

    steps: int
    every: int
    rows: int
    scored: int = 0
    first: bool = False
    full: int = 0

    @property
    def evaluations(self) -> int:
        """How often it evaluates: perhaps before the first step, every so many steps, and after the last."""
        return int(self.first) + math.ceil(self.steps / self.every)

    def warmup(self, steps: int) -> int:
        """Return how many of the recipe's warm-up steps a run has: the same share of fewer steps."""
        return steps * self.steps // self.full if self.full > self.steps else steps

    @property
    def halfway(self) -> int:
        """The step of the last evaluation in the first half, or of the first one."""
        return self.every * max(1, self.steps // self.every // 2)


@dataclass(frozen=True)
class RunCost:
    """Seconds of a method's run: `start` + `step` for each step + `row` for each row that is evaluated.

    `start` holds everything else: loading, the first step's extra time, writing what was trained.
    """

    start: float
    step: float
    row: float

    def seconds(self, length: RunLength) -> float:
        """Return the time of a run."""
        starts = 2 if length.scored else 1
        evaluated = length.evaluations * length.rows + length.scored
        return starts * self.start + length.steps * self.step + evaluated * self.row

    def scaled(self, factor: float) -> RunCost:
        """Return the cost on a machine that takes so much longer."""
        return RunCost(self.start * factor, self.step * factor, self.row * factor)


def measured_cost(result: TrialResult, study: Path, *, warm: bool) -> RunCost:
    """Return the cost that a finished short run shows.

    The time of a step is the median over the logged parts after the first, which also warms up caches.

    Args:
        result: of a run of a few steps, logged at each.
        study: the directory that `result.run` is relative to.
        warm: whether the runs to come are forked from a process that has imported everything.
    """
    steps = int(result.summary.get("steps") or 1)
    evaluations = [point.metrics.get("eval_runtime", 0.0) for point in result.curve]
    rows = [seconds / held_out for seconds, held_out in zip(evaluations, _rows(result), strict=True) if held_out]
    step = _step_seconds(result, study)
    rest = result.seconds - steps * step - sum(evaluations) - (result.seconds_of_imports if warm else 0.0)
    return RunCost(max(0.0, rest), step, statistics.median(rows) if rows else 0.0)


def held_out_rows(results: Iterable[TrialResult]) -> int:
    """Return how many rows runs evaluate on; 0 if none has evaluated."""
    return max((count for result in results for count in _rows(result)), default=0)


def _rows(result: TrialResult) -> list[int]:
    return [int(point.metrics.get("eval_rows", 0)) for point in result.curve]


def _step_seconds(result: TrialResult, study: Path) -> float:
    """Return the seconds of a step: the tokens between two lines over the rate that the later one tells."""
    lines: Sequence[dict[str, float]] = []
    if result.run is not None:
        lines = [
            line for line in StepLines(study / result.run / "metrics.jsonl").lines() if "tokens_per_second" in line
        ]
    found = []
    for before, after in pairwise(lines):
        steps, rate = after["step"] - before["step"], after["tokens_per_second"]
        if steps > 0 and rate:
            found.append((after["tokens"] - before["tokens"]) / rate / steps)
    if found:
        return float(statistics.median(found))
    tokens, rate = result.summary.get("train_tokens") or 0, result.summary.get("tokens_per_second") or 0.0
    return float(tokens / rate / max(1, int(result.summary.get("steps") or 1))) if rate else 0.0
