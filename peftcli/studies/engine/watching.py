"""Who watches a study while its trials run, and who may stop one: protocols for the console, `compare` and `sweep`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from peftcli.studies.engine.trial import CurvePoint, Trial, TrialResult


class Watcher(Protocol):
    """Is told what happens; called in the process and thread that called `Study.run`."""

    def started(self, trial: Trial) -> None:
        """Tell that a trial's process starts; again, if it was given back and goes on."""
        ...

    def progressed(self, trial: Trial, step: int, total_steps: int) -> None:
        """Tell how far a running trial is; a few times a second at most."""
        ...

    def evaluated(self, trial: Trial, point: CurvePoint) -> None:
        """Tell of an evaluation of a running trial."""
        ...

    def ended(self, trial: Trial, result: TrialResult) -> None:
        """Tell how a trial ended; also of those that ended before this call, and of those that others trained."""
        ...

    def note(self, text: str) -> None:
        """Tell one sentence that a person should read: a trial that is given back, others that work on the study."""
        ...


class StopEarly(Protocol):
    """Decides whether a running trial is stopped."""

    def should_stop(self, trial: Trial, curve: Sequence[CurvePoint]) -> bool:
        """Return whether a trial stops after its latest evaluation; it waits for the answer.

        Args:
            curve: its evaluations so far in order, the one before the first step included. The metric of the study is
                in Optuna's storage already.
        """
        ...
