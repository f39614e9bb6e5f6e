"""The trials of a study in Optuna's storage: their states, values and evaluations, for samplers, pruners and people."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peftcli.errors import UserError
from peftcli.studies.engine.storage import quiet_optuna
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
        self._numbers: dict[str, int] = {}

    def begin(self, trial: Trial) -> None:
        """Make the trial's entry, or go on with the one that a worker left."""
        from optuna.trial import TrialState, create_trial

        with storage_answers():
            if trial.number is not None:
                self._numbers[trial.name] = trial.number
                self._attribute(trial.number, NAME, trial.name)
            elif (number := self._running(trial.name)) is not None:
                self._numbers[trial.name] = number
            else:
                about = {NAME: trial.name, "group": trial.group, "purpose": trial.purpose}
                self._study.add_trial(create_trial(state=TrialState.RUNNING, user_attrs=about))
                found = self._running(trial.name)
                assert found is not None  # nobody else begins a trial that this worker holds
                self._numbers[trial.name] = found

    def report(self, trial: Trial, point: CurvePoint) -> None:
        """Write an evaluation."""
        value = point.metrics.get(self._metric)
        if value is not None:
            with storage_answers():
                self._storage.set_trial_intermediate_value(self._id(self._numbers[trial.name]), point.step, value)

    def end(self, result: TrialResult) -> None:
        """Write how a trial ended, unless that is there: a worker may have died after it wrote the result's file.

        A trial that was stopped or diverged is pruned for Optuna, whose samplers then avoid its surroundings.
        """
        from optuna.trial import TrialState

        with storage_answers(), quiet_optuna():
            number = self._running(result.name)
            if number is None:
                return
            self._attribute(number, "state", result.state)
            if result.reason:
                self._attribute(number, "reason", result.reason[:2000])  # columns of databases are limited
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

    def _attribute(self, number: int, key: str, value: Any) -> None:
        self._storage.set_trial_user_attr(self._id(number), key, value)

    def _id(self, number: int) -> int:
        """Return what the storage calls a trial."""
        trials = self._study.get_trials(deepcopy=False)
        return next(int(trial._trial_id) for trial in trials if trial.number == number)


@contextmanager
def storage_answers() -> Iterator[None]:
    """Say that a storage went away while trials were trained.

    Raises:
        UserError: in place of the database's error.
    """
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except SQLAlchemyError as error:
        reason = (str(error.__cause__ or error).strip().splitlines() or [type(error).__name__])[0]
        remedy = "when it is there again, the same command goes on"
        raise UserError(f"the storage of the study does not answer any more: {reason}", suggestion=remedy) from error
