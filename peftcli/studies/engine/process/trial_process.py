"""A worker's hold on the process of one trial: starting it, its messages, stopping it."""

from __future__ import annotations

import multiprocessing
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from peftcli.process_state import environment_without
from peftcli.studies.engine.leases import Lease
from peftcli.studies.engine.process.train_trial import train_trial
from peftcli.studies.engine.process.trial_outcome import Outcome, TrialJob
from peftcli.studies.engine.trial import CurvePoint, Trial

_WARM = ["peftcli.studies.engine.process.warm_imports"]
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1"}
"""numpy's library would start its threads while it is imported, and a process that is forked lacks them. torch has its
own, which start with the first operation, in the forked process."""


class TrialProcess:
    """A running trial.

    Args:
        trial: what it trains.
        job: how.
        lease: that this worker holds the trial.
        slot: which share of the machine it has.
        fresh: it starts from nothing, instead of being forked from the warm process.

    Attributes:
        curve: evaluations so far; those of before a kill included.
        outcome: what it said about its end; None if it said nothing.
        asked_to_stop: by the study, since its values are not worth the rest.
        started: reading of the monotonic clock; `ready`: that at which everything was imported.
    """

    def __init__(self, trial: Trial, job: TrialJob, lease: Lease, slot: int, *, fresh: bool) -> None:
        self.trial, self.lease, self.slot, self.fresh = trial, lease, slot, fresh
        self.curve: list[CurvePoint] = []
        self.outcome: Outcome | None = None
        self.asked_to_stop = False
        self.started = self.ready = time.monotonic()
        context: Any = multiprocessing.get_context("spawn" if fresh else "forkserver")
        if not fresh:
            context.set_forkserver_preload(_WARM)
        own, its = context.Pipe()
        self.messages: Connection = own
        self._process = context.Process(target=train_trial, args=(job, its), name=trial.name)
        with environment_without((), {} if fresh else _ONE_THREAD):  # of the warm process, which starts with the first
            self._process.start()
        its.close()

    def receive(self) -> Any:
        """Return the next message; None once the process has ended."""
        try:
            return self.messages.recv()
        except (EOFError, OSError):
            return None

    def answer(self, stop: bool) -> None:
        """Answer a process that waits after an evaluation."""
        with suppress(OSError):  # it was killed meanwhile, which its messages will say
            self.messages.send(stop)

    def ask_to_stop(self) -> None:
        """Let the run save its state and end. On Windows it ends at once, and goes on from its last checkpoint."""
        self._process.terminate()

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()

    def end(self) -> int:
        """Wait for the end of the process, which has closed its messages; return its exit code."""
        self._process.join()
        self.messages.close()
        return int(self._process.exitcode or 0)
