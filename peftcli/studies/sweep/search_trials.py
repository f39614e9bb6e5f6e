"""The trials of a search: which points, drawn by which worker, until all are done or the budget is used."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from peftcli.studies.compare.budget.time_budget import SpentTime
from peftcli.studies.compare.trial_results import final_score
from peftcli.studies.engine.storage import storage_answers
from peftcli.studies.engine.study import Study
from peftcli.studies.engine.trial import Trial, TrialResult
from peftcli.studies.sweep.optuna_points import suggest
from peftcli.studies.sweep.prune_trials import CurvePruning
from peftcli.studies.sweep.run_settings import RunSettings, SweepWatcher
from peftcli.studies.sweep.space.point_overrides import overrides_of, point_name, point_text
from peftcli.studies.sweep.space.search_space import Point
from peftcli.studies.sweep.sweep_request import SweepRequest

POINT = "sweep_point"
"""Attribute of a trial in Optuna's storage: its point as JSON."""
SURPLUS = "sweep_surplus"
"""Attribute of a trial that was drawn when there were enough: two workers drew the last one at once."""


@dataclass(frozen=True)
class Tried:
    """One point of a search; `result` is None if it was not run."""

    point: Point
    name: str
    result: TrialResult | None


class SearchTrials:
    """Runs the search of one sweep in this worker; others may share it.

    Args:
        study: where trials run.
        request: what is asked.
        recipe: path of the recipe below the study's directory.
        settings: of this worker.
        watch: is told what happens.
    """

    def __init__(
        self, study: Study, request: SweepRequest, recipe: str, settings: RunSettings, watch: SweepWatcher
    ) -> None:
        self._study, self._request, self._recipe = study, request, recipe
        self._settings, self._watch = settings, watch
        self._spent = SpentTime(settings.directory)
        self._stop = None
        if request.pruner != "none":
            self._stop = CurvePruning(request, self.points, study.result)

    def run(self) -> bool:
        """Train what is not trained yet; return whether the budget ended it early.

        Raises:
            Stopped: the user stopped it; the same call goes on.
            UserError: the storage of the study went away.
        """
        with storage_answers():
            return self._run_batches(self._grid_batches() if self._request.grid else self._drawn_batches())

    def points(self) -> dict[str, Point]:
        """Return the points so far by name, in the order in which they were drawn, each once."""
        points = self._request.checked.points if self._request.grid else [point for _, point in self._drawn()]
        return {point_name(point): point for point in points}

    def tried(self) -> list[Tried]:
        """Return what became of each point."""
        return [Tried(point, name, self._study.result(name)) for name, point in self.points().items()]

    def repeated(self) -> int:
        """Return how many trials drew a point that had been tried."""
        return 0 if self._request.grid else len(self._drawn()) - len(self.points())

    def _searched(self, names: Iterable[str]) -> list[Trial]:
        """Return trials of the search with the recipe's own seed, each with its number in Optuna's storage."""
        points = self.points()
        numbers: dict[str, int] = {}
        for number, point in [] if self._request.grid else self._drawn():
            numbers.setdefault(point_name(point), number)
        return [replace(self._trial(name, points[name], ()), number=numbers.get(name)) for name in names]

    def fresh_trial(self, point: Point, seed: int) -> Trial:
        """Return the trial of a point with another seed."""
        trial = self._trial(f"{point_name(point)}.seed-{seed}", point, (f"seed={seed}",))
        return replace(trial, score_rows=True, purpose="score")

    def _trial(self, name: str, point: Point, changes: tuple[str, ...]) -> Trial:
        overrides = overrides_of(point, self._request.loaded.recipe.method.name)
        return Trial(
            name=name,
            recipe=self._recipe,
            overrides=(*self._request.overrides, *overrides, *changes),
            group=point_text(point),
            purpose="sweep",
        )

    def train(self, trials: Sequence[Trial], *, prune: bool = False) -> list[TrialResult]:
        """Run trials, and write down that time was spent, however this ends."""
        self._spent.seen()
        try:
            stop = self._stop if prune else None
            return self._study.run(trials, jobs=self._settings.jobs, watch=self._watch, stop_early=stop)
        finally:
            self._spent.seen()

    def _run_batches(self, batches: Iterator[list[Trial]]) -> bool:
        for batch in batches:
            if self._no_time_for(batch):
                return True
            self.train(batch, prune=True)
        return False

    def _grid_batches(self) -> Iterator[list[Trial]]:
        """Yield all points at once; with a budget some at a time, so that there is a moment to stop."""
        trials = self._searched(self.points())
        self._watch.phase("the grid", len(trials), None)
        size = len(trials) if self._settings.budget is None else self._settings.jobs
        for first in range(0, len(trials), size):
            yield trials[first : first + size]

    def _drawn_batches(self) -> Iterator[list[Trial]]:
        """Yield trials until there are enough: first those that a killed worker left, then new ones.

        At the end those come that other workers hold: they are waited for, and taken over if such a worker dies.
        """
        number = self._request.trials
        self._watch.phase("the search", number, None)
        left = [
            name for name in self.points() if self._study.result(name) is None and self._study.held_by(name) is None
        ]
        if left:
            yield self._searched(left)
        while (missing := number - len(self._drawn())) > 0:
            drawn = [self._draw() for _ in range(min(self._settings.jobs, missing))]
            names = [name for name in dict.fromkeys(drawn) if name is not None and self._study.result(name) is None]
            if names:
                yield self._searched(names)
            self._tell()
        elsewhere = [name for name in self.points() if self._study.result(name) is None]
        if elsewhere:
            yield self._searched(elsewhere)
        self._tell()

    def _draw(self) -> str | None:
        """Return the name of a new point, or None where another worker drew the last one meanwhile."""
        trial: Any = self._study.optuna.ask()
        point = suggest(trial, self._request.checked.space)
        trial.set_user_attr(POINT, json.dumps(point))
        earlier = sum(number < trial.number for number, _ in self._drawn())
        if earlier < self._request.trials:
            return point_name(point)
        trial.set_user_attr(SURPLUS, True)
        self._study.optuna.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
        return None

    def _drawn(self) -> list[tuple[int, Point]]:
        """Return Optuna's number and the point of each trial that any worker has drawn."""
        trials = self._study.optuna.get_trials(deepcopy=False)
        mine = [one for one in trials if POINT in one.user_attrs and SURPLUS not in one.user_attrs]
        return [(one.number, json.loads(one.user_attrs[POINT])) for one in sorted(mine, key=lambda one: one.number)]

    def _tell(self) -> None:
        """Tell Optuna of trials that drew a point which another trial has: they have the same score.

        Another worker may tell it of the same ones meanwhile.
        """
        for one in self._study.optuna.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if POINT not in one.user_attrs:
                continue
            result = self._study.result(point_name(json.loads(one.user_attrs[POINT])))
            if result is None:
                continue
            score = final_score(result, self._request.metric)
            ended: dict[str, Any] = {"state": TrialState.PRUNED if result.state == "stopped" else TrialState.FAIL}
            if result.state == "finished" and score is not None:
                ended = {"values": score}
            with suppress(UpdateFinishedTrialError):
                self._study.optuna.tell(one.number, skip_if_finished=True, **ended)

    def _no_time_for(self, batch: Sequence[Trial]) -> bool:
        """Return whether these trials, and the fresh seeds that must follow, take more than is left of the budget."""
        budget = self._settings.budget
        results = [result for one in self.tried() if (result := one.result) is not None]
        new = [trial for trial in batch if self._study.result(trial.name) is None]
        if budget is None or not results or not new:
            return False
        mean = sum(result.seconds for result in results) / len(results)
        winners = len(results) + len(new)
        if self._request.number_key is None:
            winners = min(self._request.winners, winners)
        runs = len(new) + winners * len(self._request.seeds)
        return self._spent.seconds() + runs * mean / self._settings.jobs > budget
