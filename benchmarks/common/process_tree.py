"""One command, measured from outside: seconds of clock and CPU, and peak memory of all its processes. For Linux."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

EVERY = 0.1
"""Seconds between two looks at the processes."""


@dataclass(frozen=True)
class Usage:
    """What a command took.

    Args:
        code: its exit code; negative: the signal that ended it.
        seconds: from its start to its end.
        cpu_seconds: user and system, of all processes.
        peak_bytes: the largest sum of resident memory of its processes, or that of the largest single one where it was
            missed between two looks. Pages that processes share count for each.
        late: whether it was ended since it took too long.
    """

    code: int
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    late: bool


def measured(
    command: Sequence[str], environment: Mapping[str, str], folder: Path, log: Path, limit: float = float("inf")
) -> Usage:
    """Run a command in a session of its own and return what it took.

    Args:
        folder: its working directory.
        log: where its output goes.
        limit: seconds after which all of it is killed.

    Raises:
        OSError: it cannot be started.
    """
    peak, late, ended = 0, False, threading.Event()
    with log.open("wb") as sink:
        started = time.monotonic()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT, env=environment, cwd=folder,
            start_new_session=True,
        )  # fmt: skip

        def watch() -> None:
            nonlocal peak, late
            while not ended.wait(EVERY):
                peak = max(peak, resident_bytes(process.pid))
                if time.monotonic() - started > limit and not late:
                    late = True
                    _kill(process.pid)

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:  # Ctrl-C: nothing is left behind
            _kill(process.pid)
            raise
        finally:
            ended.set()
            watcher.join()
        seconds = time.monotonic() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    largest = max(peak, usage.ru_maxrss * 1024)
    return Usage(process.returncode, seconds, usage.ru_utime + usage.ru_stime, largest, late)


def _kill(session: int) -> None:
    with suppress(ProcessLookupError):  # it has ended by itself meanwhile
        os.killpg(session, signal.SIGKILL)


def resident_bytes(root: int) -> int:
    """Return the resident memory of a process and its descendants; one that has just ended counts nothing."""
    total, waiting = 0, [root]
    while waiting:
        process = Path("/proc") / str(waiting.pop())
        try:
            total += int((process / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            for task in (process / "task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return total
