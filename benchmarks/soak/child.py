"""Run a command of peft in a forked child of a process that has imported everything: a start takes no seconds.

The child has its own session, working directory, standard streams and temporary directory. It ends by `os._exit` after
Python's exit functions, so that nothing of the parent is cleaned up by it.
"""

from __future__ import annotations

import atexit
import os
import re
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

LIMIT = 60.0
"""Seconds after which a command counts as hanging."""
MEMORY = 2**33
"""Bytes of address space of a command: no input may take the machine's memory."""
TEMPORARY, CACHE = ".tmp", ".cache"
"""Directories of a place: the command's temporary one, and its prepared rows."""
Fault = Callable[[], None]
"""Called in the child before the command: sets a limit, or listens for a moment."""

_TRACEBACK = re.compile(r"Traceback \(most recent call last\)|This is a bug in peftcli")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Args:
        code: its exit code, or minus the signal that ended it.
        out, err: what it wrote to its standard streams.
        hung: it was killed after `LIMIT` seconds.
        left: a process that it started outlived it.
    """

    arguments: tuple[str, ...]
    code: int
    out: str
    err: str
    seconds: float
    hung: bool = False
    left: bool = False

    @property
    def killed(self) -> bool:
        """Whether SIGKILL ended it, other than for hanging."""
        return self.code == -signal.SIGKILL and not self.hung

    def fault(self) -> str | None:
        """Return what is wrong with this end, whatever was done to the command's files; None for exit codes 0, 2 and 3.

        3 is a merge whose verification failed.
        """
        if self.hung:
            return f"longer than {LIMIT:.0f} s"
        if self.code < 0:
            return f"ended by {signal.Signals(-self.code).name}"
        if _TRACEBACK.search(self.err + self.out):
            lines = [line for line in self.err.splitlines() if re.match(r"[\w.]+(Error|Exception|Interrupt)?: ", line)]
            return f"a traceback: {lines[-1][:150] if lines else self.err[-150:]}"
        if self.code not in (0, 2, 3):
            return f"exit code {self.code}: {self.err.strip()[-150:]}"
        if self.code and "rror: " not in self.err:
            return f"exit code {self.code} without a message"
        if _CONTROL.search(self.err):
            return f"a control character in the message: {self.err.strip()[-150:]!r}"
        return "a process was left behind" if self.left else None

    def __str__(self) -> str:
        shown = f"$ peft {' '.join(self.arguments)}\n{self.out}{self.err}"
        return f"{shown.rstrip()}\n[exit code {self.code}, {self.seconds:.2f} s]"


def peft(place: Path, arguments: Sequence[str], *faults: Fault, kill_after: float | None = None) -> Ended:
    """Run `peft ARGUMENTS` in a directory.

    Args:
        kill_after: seconds after which SIGKILL ends it, if it is not done by then.
    """
    (place / TEMPORARY).mkdir(exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    start = time.monotonic()
    streams = [os.pipe() for _ in range(2)]  # files would be held to the limits that faults set
    child = os.fork()
    if child == 0:
        _be_the_child(place, list(arguments), faults, [write for _, write in streams])
    with suppress(ProcessLookupError, PermissionError):  # both set it: neither has to wait for the other
        os.setpgid(child, child)
    texts = [_Text(read, write) for read, write in streams]
    status, hung = _wait(child, texts, start, kill_after)
    seconds = time.monotonic() - start
    left = _end_group(child)
    out, err = (text.end() for text in texts)
    return Ended(tuple(arguments), os.waitstatus_to_exitcode(status), out, err, seconds, hung, left)


class _Text:
    """What comes out of a pipe; the end for writing is closed here."""

    def __init__(self, read: int, write: int) -> None:
        os.close(write)
        os.set_blocking(read, False)
        self._read, self._parts = read, bytearray()

    def take(self) -> None:
        """Read what is there."""
        with suppress(BlockingIOError):
            while part := os.read(self._read, 2**16):
                self._parts += part

    def end(self) -> str:
        """Return all of it as text."""
        self.take()
        os.close(self._read)
        return self._parts.decode(errors="replace")


def _be_the_child(place: Path, arguments: list[str], faults: Sequence[Fault], streams: Sequence[int]) -> None:
    code = 70
    try:
        with suppress(PermissionError):
            os.setpgid(0, 0)
        os.chdir(place)
        for number, descriptor in enumerate((os.open(os.devnull, os.O_RDONLY), *streams)):
            os.dup2(descriptor, number)
        os.environ |= {"TMPDIR": str(place / TEMPORARY), "PEFTCLI_CACHE": str(place / CACHE)}
        tempfile.tempdir = None
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.RLIM_INFINITY))
        from peftcli.cli.app import main

        for fault in faults:
            fault()
        try:
            main(arguments)
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _wait(child: int, texts: Sequence[_Text], start: float, kill_after: float | None) -> tuple[int, bool]:
    """Return the child's status and whether it hung."""
    pause = 0.001
    while True:
        for text in texts:
            text.take()
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status, False
        spent = time.monotonic() - start
        if spent > (LIMIT if kill_after is None else kill_after):
            os.kill(child, signal.SIGKILL)
            return os.waitpid(child, 0)[1], kill_after is None
        time.sleep(pause)
        pause = min(pause * 1.2, 0.01)


def _end_group(group: int) -> bool:
    """Return whether processes of a command outlived it by two seconds; they are ended."""
    for _ in range(200):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.01)
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    return True
