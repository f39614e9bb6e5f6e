"""The launcher's ends of its connections to the processes of a run: what it tells them, and who has left, in order.

Each process keeps a connection to its launcher on the loopback interface. The system closes it however either of the
two ends, so that each knows of the other's end at once, on every system.
"""

from __future__ import annotations

import math
import os
import selectors
import signal
import socket
import threading
import time
from contextlib import suppress
from typing import Any

from peftcli.distributed.launched_worker import END, FAREWELL, GOOD_CODES, GRACE_SECONDS, INTRODUCTION, STOP

KILL_SECONDS = GRACE_SECONDS + 2
"""How long the others may take to end after one has failed."""


class LauncherLine:
    """Talks to the processes from a thread; a context, since it holds sockets.

    Attributes:
        left: ranks of the processes that have ended other than well, in order.
        codes: by rank, the exit codes of those that could say one before they ended.
    """

    def __init__(self) -> None:
        self.left: list[int] = []
        self.codes: dict[int, int] = {}
        self._server = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self._word = b""
        self._released = False
        self._deadline = math.inf
        self._ranks: dict[socket.socket, int] = {}
        self._running: dict[socket.socket, int] = {}
        self._wake, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, name="processes", daemon=True)

    @property
    def address(self) -> str:
        """What a process needs to find its launcher: a port, and the id of the process that it is a child of."""
        return f"{self._server.getsockname()[1]}:{os.getpid()}"

    def __enter__(self) -> LauncherLine:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        with suppress(OSError):
            self._wake.send(b".")
        self._thread.join()
        for one in (*self._ranks, self._server, self._wake, self._woken):
            one.close()

    def tell(self, again: bool) -> None:
        """Ask all to stop, or to end at once if they were asked before; those that come later are told, too."""
        self._word = END if again else STOP
        for line in list(self._ranks):
            _send(line, self._word)

    def _serve(self) -> None:
        with selectors.DefaultSelector() as ready:
            ready.register(self._server, selectors.EVENT_READ)
            ready.register(self._woken, selectors.EVENT_READ)
            while True:
                left = self._deadline - time.monotonic()
                if left <= 0:
                    self._kill()
                    left = math.inf
                for key, _ in ready.select(None if left == math.inf else left):
                    if key.fileobj is self._woken:
                        return
                    if key.fileobj is self._server:
                        self._welcome(ready)
                    else:
                        self._hear(ready, key.fileobj)

    def _welcome(self, ready: selectors.BaseSelector) -> None:
        line, _ = self._server.accept()
        line.settimeout(1.0)  # whoever else connects to this port must not hold us up
        try:
            rank, process = INTRODUCTION.unpack(line.recv(INTRODUCTION.size, socket.MSG_WAITALL))
        except Exception:
            line.close()
            return
        self._ranks[line], self._running[line] = rank, process
        ready.register(line, selectors.EVENT_READ)
        if self._word:
            _send(line, self._word)
        if self._released:
            _close(line)

    def _hear(self, ready: selectors.BaseSelector, line: Any) -> None:
        """Take note that a process has ended: with a code if it could still say so, or without a word."""
        try:
            said = line.recv(FAREWELL.size)
        except OSError:
            said = b""
        ready.unregister(line)
        del self._running[line]
        code = FAREWELL.unpack(said)[0] if said else None
        if code is not None:
            self.codes[self._ranks[line]] = code
        if code not in GOOD_CODES:
            self.left.append(self._ranks[line])
            self._release()

    def _release(self) -> None:
        """Let all processes end, since one has failed: they wait for it in vain."""
        if not self._released:
            self._released, self._deadline = True, time.monotonic() + KILL_SECONDS
        for line in list(self._ranks):
            _close(line)

    def _kill(self) -> None:
        """Kill those that have not ended: they are stuck, or stopped."""
        self._deadline = math.inf
        for process in self._running.values():
            with suppress(OSError):
                os.kill(process, getattr(signal, "SIGKILL", signal.SIGTERM))


def _send(line: socket.socket, word: bytes) -> None:
    with suppress(OSError):  # it has ended, or was released
        line.send(word)


def _close(line: socket.socket) -> None:
    """Close our half; the other end reads that nothing more comes."""
    with suppress(OSError):
        line.shutdown(socket.SHUT_WR)
