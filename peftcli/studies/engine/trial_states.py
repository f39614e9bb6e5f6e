"""The trials of a study in Optuna's storage: their states, values and evaluations, for samplers, pruners and people."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any

from peftcli.studies.engine.storage import quiet_optuna, storage_answers
from peftcli.studies.engine.trial import CurvePoint, Trial, TrialResult

NAME = "name"
"""User attribute with the name of a trial."""


class TrialStates:
    """Writes what happens to trials into Optuna's study; only the worker that holds a trial writes about it.

    Args:
        study: Optuna's.
        storage: the one that the study is in.
        metric: what a trial's value is.
    """

    def __init__(self, study: Any, storage: Any, metric: str) -> None:
        self._study, self._storage, self._metric = study, storage, metric
        self._ids: dict[str, int] = {}

    def begin(self, trial: Trial) -> None:
        """Make the trial's entry, or go on with the one that a worker left.

        A trial that Optuna drew may have ended before: it is tried again, since its result was removed.
        """
        from optuna.trial import TrialState, create_trial

        with storage_answers():
            number = self._running(trial.name) if trial.number is None else trial.number
            if number is not None and not self._storage.get_trial(self._id(number)).state.is_finished():
                self._ids[trial.name] = self._id(number)
                self._storage.set_trial_user_attr(self._ids[trial.name], NAME, trial.name)
                return
            about = {NAME: trial.name, "group": trial.group, "purpose": trial.purpose}
            new = create_trial(state=TrialState.RUNNING, user_attrs=about)
            self._ids[trial.name] = self._storage.create_new_trial(self._study_id(), new)

    def report(self, trial: Trial, point: CurvePoint) -> None:
        """Write an evaluation."""
        value = point.metrics.get(self._metric)
        if value is not None:
            with storage_answers():
                self._storage.set_trial_intermediate_value(self._ids[trial.name], point.step, value)

    def end(self, result: TrialResult) -> None:
        """Write how a trial ended, unless that is there: a worker may have died after it wrote the result's file.

        A trial that was stopped or diverged is pruned for Optuna, whose samplers then avoid its surroundings. Every
        worker that sees a result writes it, so that another one may be quicker between two lines here.
        """
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        with storage_answers(), quiet_optuna(), suppress(UpdateFinishedTrialError):
            number = self._running(result.name)
            if number is None:
                return
            entry = self._id(number)
            self._storage.set_trial_user_attr(entry, "state", result.state)
            if result.reason:  # columns of databases are limited
                self._storage.set_trial_user_attr(entry, "reason", result.reason[:2000])
            value = (result.summary.get("eval") or {}).get(self._metric)
            finite = isinstance(value, int | float) and math.isfinite(value)
            pruned = result.state in ("stopped", "diverged")
            state = TrialState.PRUNED if pruned else TrialState.FAIL
            if result.state == "finished" and finite:
                state = TrialState.COMPLETE
            values = float(value) if state == TrialState.COMPLETE and value is not None else None
            self._study.tell(number, values, state=state, skip_if_finished=True)

    def _running(self, name: str) -> int | None:
        """Return the number of the trial of this name that has no end yet; the first, if there are several."""
        from optuna.trial import TrialState

        states = (TrialState.RUNNING, TrialState.WAITING)
        found = self._study.get_trials(deepcopy=False, states=states)
        return next((trial.number for trial in found if trial.user_attrs.get(NAME) == name), None)

    def _id(self, number: int) -> int:
        """Return what the storage calls a trial."""
        return int(self._storage.get_trial_id_from_study_id_trial_number(self._study_id(), number))

    def _study_id(self) -> int:
        return int(self._storage.get_study_id_from_name(self._study.study_name))
