"""Which worker trains which trial: lease files beside the trials, since a journal of Optuna knows no heartbeat.

`leases/NAME.1.json` is the first worker's, `NAME.2.json` that of the one which took the trial over, and so on. A file
is created by one worker only, and never replaced by another one: the trial belongs to the highest number, and whoever
holds a lower one has lost it. No lock is needed, on network file systems either.
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from peftcli.atomic import write_text
from peftcli.errors import UserError
from peftcli.studies.engine.create_once import create_once
from peftcli.studies.engine.worker_identity import WorkerIdentity
from peftcli.typed_record import read_record

HEARTBEAT = 10.0
"""Seconds between two heartbeats of a lease."""
STALE = 120.0
"""Seconds without a heartbeat after which a worker of another machine is taken for dead. Network file systems may show
a file as it was a minute ago."""

MOST_KILLS = 3
"""Kills of a trial's process, while its worker lives, after which the trial has failed: its memory does not suffice."""
MOST_DEATHS = 10
"""The same where the worker died as well: a user or a machine that ends says nothing of the trial, unless each does."""


@dataclass(frozen=True)
class Lease:
    """That a worker trains a trial.

    Args:
        trial: its name.
        attempt: how many workers, this one included, have held the trial.
        killed: how many of those before died while they held it, or lost its process, since the last one that left a
            new checkpoint: who is killed again and again and gets on all the same (a machine that is lent for an hour)
            does not fail.
        worker: who holds it.
        heartbeat: when that was last written, in seconds since 1970 on the worker's machine.
        released: the worker gave it back in order, such as at Ctrl-C.
        step: of the run's last checkpoint when the trial was taken.
        processes: how many of those in `killed` were the trial's own process, while its worker lived.
    """

    trial: str
    attempt: int
    killed: int
    worker: WorkerIdentity
    heartbeat: float
    released: bool = False
    step: int = 0
    processes: int = 0

    @property
    def hopeless(self) -> bool:
        """Whether the trial was killed so often, without getting on, that it will not end."""
        return self.processes >= MOST_KILLS or self.killed >= MOST_DEATHS


class Leases:
    """The leases of a study, as one worker sees and takes them.

    Args:
        directory: of the files; it exists.
        worker: this one.
        stale: see `STALE`.
    """

    def __init__(self, directory: Path, worker: WorkerIdentity, *, stale: float = STALE) -> None:
        self.directory, self.worker, self._stale = directory, worker, stale
        self._seen: dict[tuple[str, int], tuple[float, float]] = {}

    def holder(self, trial: str) -> Lease | None:
        """Return the lease of the worker that trains a trial now; None if nobody does."""
        last = self._last(trial)
        return last if last is not None and not last.released and not self._is_dead(last) else None

    def take(self, trial: str, step: int = 0) -> Lease | None:
        """Take a trial that nobody trains; return None if a living worker does, or another one takes it now.

        Args:
            step: of its run's last checkpoint.
        """
        last = self._last(trial)
        if last is not None and not last.released and not self._is_dead(last):
            return None
        attempt, killed = (last.attempt, last.killed + (not last.released)) if last is not None else (0, 0)
        processes = last.processes if last is not None else 0
        if last is not None and step > last.step:
            killed, processes = min(killed, 1), min(processes, 1)
        lease = Lease(trial, attempt + 1, killed, self.worker, time.time(), step=step, processes=processes)
        return lease if create_once(self._file(trial, lease.attempt), _text(lease)) else None

    def beat(self, lease: Lease) -> bool:
        """Write a heartbeat; return False if the trial was given to another worker meanwhile."""
        if self._file(lease.trial, lease.attempt + 1).exists():
            return False
        write_text(self._file(lease.trial, lease.attempt), _text(replace(lease, heartbeat=time.time())))
        return True

    def release(self, lease: Lease) -> None:
        """Give a trial back before it has ended: others can take it at once."""
        write_text(self._file(lease.trial, lease.attempt), _text(replace(lease, released=True)))

    def count_kill(self, lease: Lease) -> None:
        """Give a trial back whose own process was killed, while this worker lives."""
        self.release(replace(lease, killed=lease.killed + 1, processes=lease.processes + 1))

    def end(self, trial: str) -> None:
        """Remove the files of a trial that has its result."""
        for file in self._files(trial).values():
            file.unlink(missing_ok=True)

    def _is_dead(self, lease: Lease) -> bool:
        """Return whether a worker is gone: by its process on this machine, else by its heartbeat.

        A heartbeat is not compared with the clock, which another machine may have set otherwise: what counts is whether
        it changes while this worker looks on.
        """
        lives = lease.worker.lives()
        if lives is not None:
            return not lives
        now = time.monotonic()
        key = (lease.trial, lease.attempt)
        beat, since = self._seen.get(key, (None, now))
        if beat != lease.heartbeat:
            self._seen[key] = (lease.heartbeat, now)
            return False
        return now - since >= self._stale

    def _last(self, trial: str) -> Lease | None:
        """Return the lease with the highest number; None without one.

        Raises:
            UserError: its file is damaged.
        """
        files = self._files(trial)
        while files:
            try:
                return read_record(Lease, files[max(files)])
            except UserError:
                if files[max(files)].exists():
                    raise
                files = self._files(trial)  # the trial ended while we looked
        return None

    def _files(self, trial: str) -> dict[int, Path]:
        name = re.compile(re.escape(trial) + r"\.(\d+)\.json")
        found = ((name.fullmatch(entry.name), entry) for entry in self.directory.iterdir())
        return {int(match[1]): entry for match, entry in found if match}

    def _file(self, trial: str, attempt: int) -> Path:
        return self.directory / f"{trial}.{attempt}.json"


def _text(lease: Lease) -> str:
    return json.dumps(asdict(lease), indent=2) + "\n"
