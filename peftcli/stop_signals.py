"""What happens when somebody asks this process to stop: Ctrl-C, SIGTERM, a terminal that is closed, a launcher's word.

Handlers are set for a while, and those of before put back.
"""

from __future__ import annotations

import _thread
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, ClassVar

SAME_REQUEST = 1.0
"""Seconds in which any number of signals are one request: systemd, Slurm and a terminal signal each process of a group,
and launchers pass on what they get besides."""


class StopRequest:
    """Whether somebody asked this process to stop, by whatever signals."""

    _launched: ClassVar[bool] = False
    _at_once: ClassVar[bool] = False
    saving: ClassVar[bool] = False
    """Whether somebody takes requests who has something to save."""

    def __init__(self) -> None:
        self.requested = False
        self._at = 0.0

    @classmethod
    def from_launcher(cls, *, at_once: bool) -> None:
        """Ask this process to stop because its launcher says so; from any thread.

        From then on, the launcher alone tells a second request from the first one that arrives late.

        Args:
            at_once: without saving anything.
        """
        cls._launched, cls._at_once = True, cls._at_once or at_once
        if os.name == "nt":
            _thread.interrupt_main(signal.SIGTERM)
        else:
            os.kill(os.getpid(), signal.SIGTERM)

    def again(self) -> bool:
        """Take note of a signal; return whether it is another request than the one that is known."""
        now = time.monotonic()
        if not self.requested:
            self.requested, self._at = True, now
            return self._at_once
        return self._at_once if self._launched else now - self._at >= SAME_REQUEST


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Yield a request that SIGINT, SIGTERM and SIGHUP set; the handlers of before are back afterwards.

    The first signal is a request, as are those that come with it; a later one acts as it would have without us.
    """
    request = StopRequest()

    def handle(number: int, _frame: FrameType | None) -> None:
        if request.again():
            signal.signal(number, before[signal.Signals(number)])
            signal.raise_signal(number)

    with _handled(handle) as before:
        StopRequest.saving = True
        try:
            yield request
        finally:
            StopRequest.saving = False


@contextmanager
def interrupted_by_signals() -> Iterator[StopRequest]:
    """Raise KeyboardInterrupt at SIGTERM and SIGHUP as at Ctrl-C inside, once for each request; yield the first.

    A second signal of the same request does not disturb what the first one made the program tidy up. Ctrl-C counts even
    where a shell starts a command in the background without job control, and has it ignored.
    """
    request = StopRequest()

    def handle(_number: int, _frame: FrameType | None) -> None:
        known = request.requested
        if request.again() or not known:
            raise KeyboardInterrupt

    with _handled(handle):
        yield request


@contextmanager
def interrupted_by_keyboard() -> Iterator[StopRequest]:
    """Raise KeyboardInterrupt at Ctrl-C inside, and say so in the request; other signals act as they would without."""
    request = StopRequest()

    def handle(_number: int, _frame: FrameType | None) -> None:
        request.requested = True
        raise KeyboardInterrupt

    with _handled(handle, [signal.SIGINT]):
        yield request


@contextmanager
def requests_passed_on(tell: Callable[[bool], None]) -> Iterator[StopRequest]:
    """Call `tell` for each request to stop inside; with True for all but the first. Nothing else happens."""
    request = StopRequest()

    def handle(_number: int, _frame: FrameType | None) -> None:
        known = request.requested
        if (again := request.again()) or not known:
            tell(again)

    with _handled(handle):
        yield request


def ignore_signals() -> None:
    """Ignore requests to stop from now on: the process ends, and its exit code is not to change."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def _handled(
    handle: Callable[[int, FrameType | None], None], only: list[signal.Signals] | None = None
) -> Iterator[dict[signal.Signals, Any]]:
    """Handle the signals that ask to stop, or `only` some; yield the handlers of before, which are back afterwards.

    Signals reach the main thread only; elsewhere nothing is installed. Windows delivers SIGINT (Ctrl-C) alone. A
    process that was started to outlive its terminal (`nohup`) ignores SIGHUP, and goes on doing so.
    """
    before: dict[signal.Signals, Any] = {}
    names = [signal.SIGINT, signal.SIGTERM] if only is None else only
    if only is None and os.name != "nt" and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        names.append(signal.SIGHUP)
    try:
        if threading.current_thread() is threading.main_thread():
            for name in names:
                before[name] = signal.getsignal(name)
                signal.signal(name, handle)
        yield before
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
