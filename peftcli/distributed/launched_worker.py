"""A process that `launching.launch` started: it hears its launcher through standard input and ends when that is closed.

The system closes the pipe however the launcher ends, by SIGKILL, too, on every system.
"""

from __future__ import annotations

import os
import signal
import threading
import time

from peftcli.errors import PeerLost
from peftcli.stop_signals import StopRequest

LAUNCHED = "PEFTCLI_LAUNCHED"
"""Environment variable that is set in the processes of `launch`."""
STOP, END = b"s", b"e"
"""What the launcher writes: stop, and save first; end at once."""
GRACE_SECONDS = 4.0
"""How long a process that is to end may take to save and tidy up."""
GRACE_WITHOUT_STATE = 1.0
"""The same where there is nothing to save."""
PEER_LOST = 75
"""Exit code for the launcher alone: this process ended because another one did."""


class LaunchedWorker:
    """Listens to the launcher from a thread."""

    def __init__(self) -> None:
        self._released = False

    def listen(self) -> None:
        """Begin to listen; what was said before is heard now."""
        threading.Thread(target=self._listen, name="launcher", daemon=True).start()

    def _listen(self) -> None:
        while (word := os.read(0, 1)) == STOP:
            StopRequest.from_launcher(at_once=False)
        self._released = word != END
        StopRequest.from_launcher(at_once=word == END)
        # the main thread may wait for a process that has ended, and hear nothing, or take the interpreter down
        grace = GRACE_SECONDS if StopRequest.saving and self._released else GRACE_WITHOUT_STATE
        if os.name != "nt":
            signal.setitimer(signal.ITIMER_REAL, grace)  # the system ends the process
        time.sleep(grace)
        os._exit(PEER_LOST)

    def is_consequence(self, error: BaseException) -> bool:
        """Whether an error says only that another process, or the launcher, has ended."""
        return self._released or (isinstance(error, PeerLost) and os.environ.get("RANK") == "0")
