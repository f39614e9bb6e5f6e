"""A study: trials of one question in a directory, which several workers can train together, and which can be killed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peftcli.studies.engine.storage import open_storage
from peftcli.studies.engine.study_files import StudyFiles
from peftcli.studies.engine.trial import Trial, TrialResult
from peftcli.studies.engine.watching import StopEarly, Watcher


class Study:
    """Use `Study.open`.

    Attributes:
        files: where its parts lie.
        optuna: the `optuna.Study` that holds its trials: for `ask` and for importance. `run` tells it how they end.
        metric: of a trial's value, such as `eval_loss`.
    """

    def __init__(self, files: StudyFiles, optuna: Any, metric: str) -> None:
        self.files, self.optuna, self.metric = files, optuna, metric

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
        return cls(files, study, metric)

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
        raise NotImplementedError("lands within the hour")

    def result(self, name: str) -> TrialResult | None:
        """Return how a trial ended; None if it has not."""
        return self.files.result(name)
