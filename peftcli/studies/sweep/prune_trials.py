"""Pruning by the evaluation curve: trials that fall behind are stopped (Optuna's median and Hyperband pruners)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import optuna
from optuna.pruners import HyperbandPruner, MedianPruner
from optuna.trial import TrialState

from peftcli.studies.engine.trial import CurvePoint, Trial, TrialResult
from peftcli.studies.sweep.sweep_request import SweepRequest

STARTUP = 4
"""Trials that are trained to their end before the median counts."""
REDUCTION = 3
"""Hyperband goes on with one in so many trials (eta of Li et al. 2018)."""


class CurvePruning:
    """Decides whether a trial stops, from the curves of all trials that any worker has ended.

    Curves are compared by the number of the evaluation, not of the step: trials with another batch size take other
    numbers of steps for the same share of the run.

    Args:
        request: what is asked.
        names: returns the names of the search's trials so far.
        result: returns how a trial ended, None if it did not.
    """

    def __init__(
        self, request: SweepRequest, names: Callable[[], Iterable[str]], result: Callable[[str], TrialResult | None]
    ) -> None:
        self._metric, self._greater = request.metric, request.greater_is_better
        self._names, self._result = names, result
        pruner = MedianPruner(STARTUP) if request.pruner == "median" else HyperbandPruner(1, "auto", REDUCTION)
        direction = "maximize" if self._greater else "minimize"
        self._study = optuna.create_study(direction=direction, pruner=pruner)
        self._trials: dict[str, Any] = {}
        self._reported: dict[str, int] = {}
        self._ended: set[str] = set()

    def should_stop(self, trial: Trial, curve: Sequence[CurvePoint]) -> bool:
        """Return whether the trial is worse than most at this evaluation; the one before the first step is none."""
        self._hear_of_others(trial.name)
        return self._told(trial.name, curve) and bool(self._trials[trial.name].should_prune())

    def _told(self, name: str, curve: Sequence[CurvePoint]) -> bool:
        """Report a curve's new evaluations; return whether there is any."""
        if name not in self._trials:
            self._trials[name] = self._study.ask()
        scores = [point.metrics.get(self._metric, math.nan) for point in curve if point.step > 0]
        for number in range(self._reported.get(name, 0), len(scores)):
            self._trials[name].report(scores[number], number + 1)
        self._reported[name] = len(scores)
        return bool(scores)

    def _hear_of_others(self, running: str) -> None:
        """Add the trials that have ended since, here or elsewhere."""
        for name in self._names():
            if name == running or name in self._ended or (result := self._result(name)) is None:
                continue
            self._ended.add(name)
            told = self._told(name, result.curve)
            if told:
                self._trials[name].should_prune()  # Hyperband notes at which rungs the trial was
            if told and result.state == "finished":
                self._study.tell(
                    self._trials[name], result.curve[-1].metrics.get(self._metric, math.nan), skip_if_finished=True
                )
            else:
                self._study.tell(self._trials[name], state=TrialState.PRUNED if told else TrialState.FAIL)
