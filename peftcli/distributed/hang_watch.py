"""Ends a process that has waited too long for the others, and says at what.

A process that has ended is noticed at once; one that stands still is not. Torch's own bound (the timeout of a process
group) holds for everything alike, also where hours are right: one process writes or uploads, the others wait. This one
is for steps alone, works for gloo and NCCL, for sums and for a base that is gathered, and names the step.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from dataclasses import dataclass

from peftcli.errors import PeerLost

POLL_SECONDS = 0.25


@dataclass
class _Watched:
    """What is being done, and the seconds that are left for it; the watching thread alone counts them down."""

    what: str
    left: float

    def pass_time(self, seconds: float) -> bool:
        """Count down, and return whether the time is over."""
        self.left -= seconds
        return self.left < 0


class HangWatch:
    """Watches one thing at a time, from a thread that starts with the first.

    Time in which this process itself stands still (Ctrl-Z, a laptop that sleeps) does not count.

    Args:
        seconds: that a thing may take; None watches nothing.
        remedy: what the message says to do.
    """

    def __init__(self, seconds: float | None, remedy: str) -> None:
        self._seconds, self._remedy = seconds, remedy
        self._watched: _Watched | None = None
        self._thread: threading.Thread | None = None

    def begin(self, what: str) -> None:
        """Begin to watch something, in place of what was watched before; its time is whole again."""
        if self._seconds is None:
            return
        self._watched = _Watched(what, self._seconds)
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="hang watch", daemon=True)
            self._thread.start()

    def end(self) -> None:
        """Watch nothing until the next `begin`."""
        self._watched = None

    def close(self) -> None:
        """Watch nothing, and end the thread."""
        self._watched = self._thread = None

    def _watch(self) -> None:
        before = time.monotonic()
        while self._thread is threading.current_thread():
            time.sleep(POLL_SECONDS)
            now = time.monotonic()
            watched, passed, before = self._watched, min(now - before, 2 * POLL_SECONDS), now
            if watched is not None and watched.pass_time(passed):
                # the main thread is in a call of torch that nothing interrupts
                sys.stderr.write(
                    f"error: {watched.what} has taken more than {self._seconds:g} s: {_CAUSE}\n    {self._remedy}\n"
                )
                sys.stderr.flush()
                os._exit(PeerLost.exit_code)


_CAUSE = "another process of this run stands still, or cannot be reached"
