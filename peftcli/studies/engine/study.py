"""A study: trials of one question in a directory, which several workers can train together, and which can be killed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peftcli.studies.engine.leases import Leases
from peftcli.studies.engine.process.machine_share import machine_shares
from peftcli.studies.engine.storage import open_storage
from peftcli.studies.engine.study_files import StudyFiles
from peftcli.studies.engine.trial import Trial, TrialResult
from peftcli.studies.engine.trial_states import TrialStates
from peftcli.studies.engine.watching import StopEarly, Watcher
from peftcli.studies.engine.work import Work
from peftcli.studies.engine.worker_identity import WorkerIdentity

_NAME = re.compile(r"[A-Za-z0-9][\w.+=,-]{0,199}", re.ASCII)
"""A name of a trial: it is a name of files and directories, too."""


class Study:
    """Use `Study.open`.

    Attributes:
        files: where its parts lie.
        optuna: the `optuna.Study` that holds its trials: for `ask` and for importance. `run` tells it how they end.
        metric: of a trial's value, such as `eval_loss`.
    """

    def __init__(self, files: StudyFiles, optuna: Any, storage: Any, metric: str) -> None:
        self.files, self.optuna, self.metric, self._storage = files, optuna, metric, storage
        self._leases = Leases(files.leases, WorkerIdentity.of_this_process())

    @classmethod
    def open(
        cls,
        directory: Path,
        asked: Mapping[str, Any],
        *,
        storage: str | None = None,
        metric: str = "eval_loss",
        greater_is_better: bool = False,
        sampler: Any = None,
        pruner: Any = None,
    ) -> Study:
        """Begin a study, or go on with the one that is there.

        Args:
            directory: of the study; shared by all machines that help.
            asked: what was asked, as plain data: a study of another question is refused.
            storage: URL of a database for the states of the trials; by default a journal file in the directory.
            metric, greater_is_better: what a trial's value is for Optuna.
            sampler, pruner: Optuna's, for `sweep`.

        Raises:
            UserError: another version, another question, a storage that cannot be reached.
        """
        files = StudyFiles(directory)
        opened = open_storage(files, asked, storage)
        study = opened.study(greater_is_better=greater_is_better, sampler=sampler, pruner=pruner)
        return cls(files, study, opened.storage, metric)

    def run(
        self,
        trials: Sequence[Trial],
        *,
        jobs: int,
        watch: Watcher,
        stop_early: StopEarly | None = None,
    ) -> list[TrialResult]:
        """Train what has not ended yet, here or in other workers of the same study; return every result in order.

        Args:
            trials: in the order in which they start. Their recipes are written.
            jobs: how many train at once in this worker.
            watch: is told what happens.
            stop_early: may stop a running trial after an evaluation.

        Raises:
            Stopped: Ctrl-C or SIGTERM; the running trials saved their state, and the same call goes on.
            UserError: a full disk, or a storage that is gone; what ended until then is kept.
        """
        _check_names(trials)
        states = TrialStates(self.optuna, self._storage, self.metric)
        return Work(self.files, states, self._leases, machine_shares(jobs), watch, stop_early).run(trials)

    def result(self, name: str) -> TrialResult | None:
        """Return how a trial ended; None if it has not."""
        return self.files.result(name)

    def held_by(self, name: str) -> WorkerIdentity | None:
        """Return the living worker that trains a trial now; None if nobody does: `run` then takes it."""
        lease = self._leases.holder(name)
        return None if lease is None else lease.worker


def _check_names(trials: Sequence[Trial]) -> None:
    """See to it that names are those of different files.

    Raises:
        ValueError: a mistake of the caller.
    """
    names = [trial.name for trial in trials]
    wrong = [name for name in names if not _NAME.fullmatch(name)]
    if wrong or len({name.casefold() for name in names}) < len(names):
        raise ValueError(f"names of trials must be different and names of files: {wrong or names}")
