"""What is done to a command from inside its process: a kill or a full disk at its N-th file event, a limit, a count.

A file event is what Python announces before it changes a file (PEP 578): an opening for writing, a new directory, a
rename, a removal. Nothing inside the program is patched.
"""

from __future__ import annotations

import atexit
import errno
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.soak.child import Fault

CHANGES = {
    "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod",
}  # fmt: skip
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def _listening(act: Callable[[int, str], object]) -> Fault:
    """Return a fault that calls `act(number, what)` before each file event, counted from 1."""

    def install() -> None:
        count = 0

        def hear(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal count
            if event == "open":
                path, _, flags = arguments
                if not isinstance(path, str | bytes | os.PathLike) or path == os.devnull:  # a stream that is open
                    return
                if not isinstance(flags, int) or not flags & WRITES:
                    return
            elif event not in CHANGES:
                return
            count += 1
            act(count, f"{event} {arguments[0]!s}")

        sys.addaudithook(hear)

    return install


def kill_at(number: int) -> Fault:
    """Return a fault that sends SIGKILL to its process at the `number`-th file event."""

    def act(count: int, _what: str) -> None:
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    return _listening(act)


def kill_before(text: str) -> Fault:
    """Return a fault that sends SIGKILL to its process at the first file event that contains `text`."""

    def act(_count: int, what: str) -> None:
        if text in what:
            os.kill(os.getpid(), signal.SIGKILL)

    return _listening(act)


def full_from(number: int) -> Fault:
    """Return a fault that lets each opening for writing and each new directory fail, from the `number`-th event on."""

    def act(count: int, what: str) -> None:
        if count >= number and what.startswith(("open ", "os.mkdir ")):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), what.partition(" ")[2])

    return _listening(act)


def listed(file: Path) -> Fault:
    """Return a fault that does nothing but list the file events, one a line."""

    def start() -> None:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        _listening(lambda _count, what: os.write(descriptor, f"{what}\n".encode(errors="replace")))()

    return start


def file_limit(size: int) -> Fault:
    """Return a fault that lets writing beyond `size` bytes of a file fail (EFBIG), as a quota does."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    return limit


def modules_listed(file: Path) -> Fault:
    """Return a fault that lists the modules which the command has imported when it ends."""

    def start() -> None:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        atexit.register(lambda: os.write(descriptor, "\n".join(sorted(sys.modules)).encode()))

    return start
