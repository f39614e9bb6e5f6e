"""The process of one trial: trains its recipe as `peft train` does, and tells its worker. No torch until it runs."""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftcli.atomic import write_text
from peftcli.errors import OutOfResources, PeerLost, Stopped, UserError
from peftcli.file_lock import LockIsHeld, NoLocks, file_lock
from peftcli.process_state import end_with_parent, libraries_quiet
from peftcli.record.run_lock import LOCK_FILE, RunIsHeld
from peftcli.record.step_lines import finite
from peftcli.stop_signals import ignore_signals, interrupted_by_signals
from peftcli.studies.engine.process.trial_outcome import Evaluated, Outcome, Progress, Ready, TrialJob, curve_point

if TYPE_CHECKING:
    from peftcli.record.callback import StepRecord
    from peftcli.record.run_summary import Summary

_BETWEEN = 0.5
"""Seconds between two messages on how far the run is."""
_OF_BEFORE = 20.0
"""Seconds in which the process of a worker that was killed must have ended; it watches its worker."""


def train_trial(job: TrialJob, worker: Connection) -> None:
    """Run a trial, and send the worker `Ready`, `Progress`, `Evaluated` and at last an `Outcome`."""
    with interrupted_by_signals():
        try:
            _settle(job)
            outcome = _outcome(job, worker)
        except KeyboardInterrupt:
            outcome = Outcome("interrupted", "stopped before anything was written")
        ignore_signals()
    worker.send(outcome)
    worker.close()
    sys.stdout.flush()
    sys.stderr.flush()
    if not Path(job.log).stat().st_size:
        Path(job.log).unlink()


def _settle(job: TrialJob) -> None:
    """Make this process independent of the terminal: its worker alone asks it to stop, and it ends with its worker."""
    end_with_parent()
    if os.name != "nt":
        os.setpgrp()  # Ctrl-C goes to the terminal's group: the worker says what it means for the trials
    os.environ.clear()
    os.environ.update(job.environment)
    log = os.open(job.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    faulthandler.enable()


def _outcome(job: TrialJob, worker: Connection) -> Outcome:
    """Train, score, and return how that ended."""
    reporter = ToWorker(worker, asks=job.asks)
    try:
        with libraries_quiet():
            return Outcome("finished", facts=finite(_train(job, reporter).as_dict()))
    except Stopped as error:
        return Outcome("interrupted", str(error), facts=finite(reporter.facts))
    except (RunIsHeld, PeerLost) as error:
        return Outcome("prevented", str(error))
    except OutOfResources as error:
        return Outcome("prevented" if not _of_memory(error) else "refused", _sentence(error), finite(reporter.facts))
    except UserError as error:
        print(error, file=sys.stderr)
        return Outcome("diverged" if _diverged(error) else "refused", _sentence(error), finite(reporter.facts))
    except Exception as error:
        traceback.print_exc()
        return Outcome("failed", traceback.format_exception_only(error)[-1].strip(), finite(reporter.facts))


def _train(job: TrialJob, reporter: ToWorker) -> Summary:
    """Train as `peft train` does, and score the held-out rows."""
    import torch

    from peftcli.assembly.recipe_to_train import recipe_to_train, set_allocator
    from peftcli.training.run import train

    reporter.ready()
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    loaded, _ = recipe_to_train(Path(job.recipe), job.changes)
    set_allocator(loaded.recipe.training)
    summary = train(loaded, resume=True, reporter=reporter, lock=_has_locks(Path(job.run)))
    if job.scores is not None and not Path(job.scores).exists():
        from peftcli.inference.row_scores import score_rows

        write_text(Path(job.scores), json.dumps(finite(score_rows(job.run).as_dict())) + "\n")
    return summary


def _has_locks(run: Path) -> bool:
    """Wait until a process of a worker that was killed has left the directory; return whether its files have locks."""
    if not run.is_dir():
        run.mkdir(parents=True)
    until = time.monotonic() + _OF_BEFORE
    while True:
        try:
            with file_lock(run / LOCK_FILE, wait=False):
                return True
        except NoLocks:
            return False
        except LockIsHeld:
            if time.monotonic() > until:
                return True  # the run says who holds it
            time.sleep(0.1)


def _of_memory(error: OutOfResources) -> bool:
    from peftcli.distributed.memory_errors import OutOfMemory

    return isinstance(error, OutOfMemory)


def _diverged(error: UserError) -> bool:
    from peftcli.training.watch.finite import NotFinite

    return isinstance(error, NotFinite)


def _sentence(error: UserError) -> str:
    """Return what is wrong, in one line."""
    first = error.problems[0]
    more = len(error.problems) - 1
    head = f"{first.key}: " if first.key and not first.message.startswith(first.key) else ""
    return head + first.message + (f" (and {more} more)" if more else "")


class ToWorker:
    """A reporter of a run that sends what happens to the worker.

    Args:
        worker: the pipe.
        asks: whether to wait after an evaluation, and to stop the run if the worker says so.

    Attributes:
        facts: of the header, so far as they are plain data.
    """

    def __init__(self, worker: Connection, *, asks: bool) -> None:
        self._worker, self._asks = worker, asks
        self._sent = 0.0
        self.facts: dict[str, Any] = {}

    def ready(self) -> None:
        """Say that everything is imported."""
        self._worker.send(Ready())

    def preparing(self, rows: int) -> None: ...

    def header(self, facts: Mapping[str, Any]) -> None:
        plain = str | int | float | bool
        self.facts = {key: value for key, value in facts.items() if isinstance(value, plain)}

    def note(self, text: str) -> None: ...

    def step(self, record: StepRecord) -> None:
        now = time.monotonic()
        if now - self._sent >= _BETWEEN or record.step == record.total_steps:
            self._sent = now
            self._worker.send(Progress(record.step, record.total_steps))

    def evaluation(self, metrics: Mapping[str, Any]) -> None:
        point = curve_point(metrics)
        if point is None:
            return
        asks = self._asks and point.step > 0  # before the first step there is no state to save
        self._worker.send(Evaluated(point, asks))
        if asks and self._worker.recv():
            signal.raise_signal(signal.SIGTERM)  # the run stops after this step, as for anybody who asks it to

    def finished(self, summary: Summary) -> None: ...
