"""What a trial's process tells its worker: how far it is, its evaluations, and how it ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from peftcli.studies.engine.trial import CurvePoint, TrialState

_BESIDE = ("step", "epoch", "best")
"""What an evaluation's line has besides the metrics."""


@dataclass(frozen=True)
class TrialJob:
    """What a trial's process is to do.

    Args:
        recipe: the recipe's file; `changes` go on top of it, `output_dir` among them.
        run: the run directory.
        scores: file for each held-out row's score; None writes none.
        log: file for what the process prints, and for the text of an error.
        environment: all variables of the process.
        threads: of tensor operations; None leaves them.
        asks: whether it waits for an answer after each evaluation.
    """

    recipe: str
    changes: tuple[str, ...]
    run: str
    scores: str | None
    log: str
    environment: dict[str, str]
    threads: int | None
    asks: bool


@dataclass(frozen=True)
class Ready:
    """Everything is imported; from here on the trial's own work is done."""


@dataclass(frozen=True)
class Progress:
    """How many steps are taken, of how many."""

    step: int
    total_steps: int


@dataclass(frozen=True)
class Evaluated:
    """An evaluation; `asks` waits for True (stop) or False."""

    point: CurvePoint
    asks: bool


@dataclass(frozen=True)
class Outcome:
    """How the process ended.

    Args:
        state: see `TrialState`; `interrupted` by the user, its state saved; `prevented` by what is no fault of the
            trial (a full disk, another process in the run's directory), which ends the work of this worker.
        reason: one sentence, if it is not `finished`.
        facts: the summary of the run, or what was known of it.
    """

    state: TrialState | str
    reason: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)


def curve_point(line: Mapping[str, Any]) -> CurvePoint | None:
    """Return a line of metrics.jsonl, or of a reporter, as a point; None if it is no evaluation."""
    metrics = {
        key: float(value)
        for key, value in line.items()
        if key not in _BESIDE and key.startswith("eval_") and isinstance(value, int | float) and value == value
    }
    return CurvePoint(int(line["step"]), metrics) if metrics else None


def curve_of(lines: Sequence[Mapping[str, Any]]) -> tuple[CurvePoint, ...]:
    """Return the evaluations among the lines of metrics.jsonl by step, each step once."""
    points = [point for line in lines if (point := curve_point(line)) is not None]
    return tuple({point.step: point for point in sorted(points, key=lambda point: point.step)}.values())
