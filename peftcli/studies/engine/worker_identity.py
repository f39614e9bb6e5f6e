"""Which process on which machine a worker is, so that others can tell whether it still lives."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_NAMESPACE = Path("/proc/self/ns/pid")

_SAME_START = 0.05
"""Seconds within which two start times of a process are one: they come from counted clock ticks."""


@dataclass(frozen=True)
class WorkerIdentity:
    """A process.

    Args:
        host: name of its machine, for people.
        machine: where its number means this process: host, start of the system, and the container's process numbers.
        pid: its number there.
        started: when it started, in seconds (`_started`), since numbers are used again.
    """

    host: str
    machine: str
    pid: int
    started: float

    @classmethod
    def of_this_process(cls) -> WorkerIdentity:
        """Return this process's own."""
        import psutil  # comes with accelerate

        pid = os.getpid()
        return cls(platform.node(), _machine(), pid, _started(psutil.Process(pid)))

    def lives(self) -> bool | None:
        """Return whether the process runs; None where this machine cannot know."""
        import psutil

        if self.machine != _machine():
            return None
        try:
            process = psutil.Process(self.pid)
            same = abs(_started(process) - self.started) < _SAME_START
            return same and process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
        except psutil.NoSuchProcess:
            return False
        except psutil.AccessDenied:  # another user's: there is such a process
            return True


def _started(process: psutil.Process) -> float:
    """Return when a process started: on Linux in seconds since the system did, elsewhere since 1970.

    Linux counts from there; psutil adds the start of the system by the clock, which somebody may set.
    """
    import psutil

    return float(process.create_time() - (psutil.boot_time() if psutil.LINUX else 0.0))


def _machine() -> str:
    """Return what tells this system's process numbers from all others'."""
    boot = _BOOT.read_text(encoding="ascii").strip() if _BOOT.exists() else ""
    namespace = os.readlink(_NAMESPACE) if _NAMESPACE.exists() else ""
    return f"{platform.node()} {boot} {namespace}".strip()
