"""A process that a launcher started: it hears its launcher, and ends when the launcher does, however that ends.

Processes of `launching.launch` have a connection to it, see `launcher_line`. Those of torchrun and `accelerate launch`
watch whose child they are.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import threading
import time
from contextlib import suppress

from peftcli.errors import PeerLost, Stopped
from peftcli.stop_signals import StopRequest, ignore_signals

LAUNCHED = "PEFTCLI_LAUNCHED"
"""Environment variable that is set in the processes of `launch`: where the launcher listens, and its process id."""
ELASTIC = "TORCHELASTIC_RUN_ID"
"""Environment variable that torch's launcher sets, which is torchrun's and Accelerate's."""
STOP, END = b"s", b"e"
"""What the launcher says: stop, and save first; end at once. It closes its half: end, another process has failed."""
INTRODUCTION = struct.Struct("!iq")
"""What a process says first: its rank, and its process id."""
FAREWELL = struct.Struct("!B")
"""What it says last: the code that it exits with. One that cannot say it has failed."""
GOOD_CODES = (0, Stopped.exit_code)
"""Codes after which the others go on: done, or asked to stop, which the others are, too."""
GRACE_SECONDS = 4.0
"""How long a process that is to end may take to save and tidy up."""
GRACE_WITHOUT_STATE = 1.0
"""The same where there is nothing to save."""
WORD_SECONDS = 5.0
"""How long a process that a signal ends waits for the launcher's word on it: elastic ends processes by signals.

Only a signal that was sent to one process alone goes without a word; a busy machine may take seconds to bring one.
"""
PARENT_SECONDS = 0.5
"""How often a process looks whose child it is."""
PEER_LOST = 75
"""Exit code for the launcher alone: this process ended because another one did."""


class LaunchedWorker:
    """Listens to a launcher from a thread."""

    def __init__(self) -> None:
        self._released = False
        self._heard = threading.Event()
        self._introduced = threading.Event()
        self._line: socket.socket | None = None
        self._ours = _is_ours()
        listen = self._listen if self._ours else self._watch_parent
        self._thread = threading.Thread(target=listen, args=(os.getppid(),), name="launcher", daemon=True)

    @classmethod
    def of_environment(cls) -> LaunchedWorker | None:
        """Return the listener of a process that a launcher started, None in any other."""
        return cls() if _is_ours() or ELASTIC in os.environ else None

    def listen(self) -> None:
        """Begin to listen, unless this was begun before; what was said earlier is heard now.

        The thread makes the connection: a signal that interrupts the main thread does not keep it from being made.
        """
        with suppress(RuntimeError):  # a thread can be started once
            self._thread.start()
        if self._ours:
            self._introduced.wait(WORD_SECONDS)  # from then on the launcher sees this process end

    def leave(self, code: int) -> None:
        """Tell the launcher the code that this process exits with; from now on no signal changes that code.

        The launcher ends the others with a signal as soon as one has failed or stopped.
        """
        ignore_signals()
        if self._ours and self._introduced.wait(WORD_SECONDS) and self._line is not None:
            with suppress(OSError):
                self._line.sendall(FAREWELL.pack(code & 0xFF))

    def _listen(self, _parent: int) -> None:
        with suppress(OSError):  # the launcher has ended
            port = int(os.environ[LAUNCHED].split(":")[0])
            self._line = socket.create_connection(("127.0.0.1", port))
            self._line.sendall(INTRODUCTION.pack(int(os.environ["RANK"]), os.getpid()))
        self._introduced.set()
        while (word := self._word()) == STOP:
            StopRequest.from_launcher(at_once=False)
            self._heard.set()
        self._end(at_once=word == END)

    def _word(self) -> bytes:
        """Wait for the launcher's next word; nothing where it has closed the connection, or has ended."""
        try:
            return self._line.recv(1) if self._line is not None else b""
        except OSError:
            return b""

    def _watch_parent(self, parent: int) -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_SECONDS)
        self._end(at_once=False)

    def _end(self, *, at_once: bool) -> None:
        """End this process within the time of grace."""
        self._released = not at_once
        StopRequest.from_launcher(at_once=at_once)
        self._heard.set()
        # the main thread may wait for a process that has ended, and hear nothing, or take the interpreter down
        grace = GRACE_SECONDS if StopRequest.saving and self._released else GRACE_WITHOUT_STATE
        if os.name != "nt":
            signal.setitimer(signal.ITIMER_REAL, grace)  # the system ends the process
        time.sleep(grace)
        os._exit(PEER_LOST)

    def is_consequence(self, error: BaseException) -> bool:
        """Whether an error says only that another process, or the launcher, has ended."""
        if self._ours and isinstance(error, (KeyboardInterrupt, Stopped)):
            self.listen()  # the signal may have come before
            self._heard.wait(WORD_SECONDS)
        return self._released or (self._ours and isinstance(error, PeerLost) and os.environ.get("RANK") == "0")


def _is_ours() -> bool:
    """Whether `launch` started this process; what a process of a run starts itself has the variable, too."""
    return os.environ.get(LAUNCHED, "").endswith(f":{os.getppid()}")
