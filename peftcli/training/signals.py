"""Stopping on request: the first Ctrl-C or SIGTERM finishes the step and saves, the second stops at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class StopRequest:
    """Whether somebody asked to stop."""

    def __init__(self) -> None:
        self.requested = False


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Yield a request that SIGINT and SIGTERM set; the handlers of before are back afterwards.

    Signals reach the main thread only; elsewhere nothing is installed. Windows delivers SIGINT (Ctrl-C) alone.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before: dict[signal.Signals, Any] = {}

    def handle(number: int, _frame: FrameType | None) -> None:
        request.requested = True
        signal.signal(number, before[signal.Signals(number)])  # a second one acts as it would have without us

    for name in (signal.SIGINT, signal.SIGTERM):
        before[name] = signal.getsignal(name)
        signal.signal(name, handle)
    try:
        yield request
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
