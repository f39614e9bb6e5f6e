"""Notice that the threads of a run on a CPU wait for processors: others use them, or a container has fewer.

The threads of one matrix product wait for the slowest of them, spinning: on two processors that eight others use, two
threads were measured to be four to nine times slower than one. Linux says of each thread how long it ran and how long
it was ready and waited for a processor; a clock could not tell that from a step with little to compute.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from peftcli.distributed.usable_cores import usable_cores

THREADS = Path("/proc/self/task")
WINDOW = 10.0
"""Seconds over which it is measured: shorter loads pass by themselves."""
MUCH = 0.3
"""Share of the time from which it is said. On a machine of its own a run waits for a few hundredths of it."""


class ProcessorWaits:
    """Measures from the first call on, window by window, until there is something to say; it says it once.

    Args:
        threads: that one product is divided among.
        directory: a folder for each thread, with `schedstat`: nanoseconds run, and nanoseconds waited.
        clock: seconds.
    """

    def __init__(self, threads: int, directory: Path = THREADS, clock: Callable[[], float] = time.perf_counter) -> None:
        self._threads, self._directory, self._clock = threads, directory, clock
        self._done = threads < 2
        self._since: tuple[float, int, int] | None = None

    def note(self) -> str | None:
        """Return what to say now, mostly nothing."""
        now = self._clock()
        if self._done or (self._since is not None and now - self._since[0] < WINDOW):
            return None
        found, before = self._times(), self._since
        if found is None:  # not Linux, or a kernel that does not count
            self._done = True
            return None
        self._since = (now, *found)
        if before is None:
            return None
        ran, waited = found[0] - before[1], found[1] - before[2]
        share = waited / (ran + waited) if min(ran, waited) > 0 else 0.0
        self._done = share >= MUCH
        return self._said(share) if self._done else None

    def _said(self, share: float) -> str:
        cores = usable_cores()
        if cores < self._threads:
            why, fewer, ends = f"the system lets this run use {cores} of the machine's cores", cores, ""
        else:
            why, fewer, ends = "other programs use this machine's cores", 1, ", or once the others have ended"
        return (
            f"{why}: its {self._threads} threads waited for a core {share:.0%} of the time; threads of one product "
            f"wait for each other, so a step can be much faster with OMP_NUM_THREADS={fewer} (its results differ by "
            f"rounding){ends}"
        )

    def _times(self) -> tuple[int, int] | None:
        """Return the nanoseconds that all threads ran and waited; a thread that has ended is left out."""
        ran = waited = 0
        for file in self._directory.glob("*/schedstat"):
            try:
                own = file.read_text().split()
            except OSError:
                continue
            ran, waited = ran + int(own[0]), waited + int(own[1])
        return (ran, waited) if ran else None
