"""Act at a named moment: when Python opens or renames a file, or looks up a host. Nothing is timed, nothing sleeps.

Python announces these moments itself, before they happen, as audit events (PEP 578; Python's documentation has a table
of their names and arguments: `open`, `os.rename`, `socket.getaddrinfo`). Run as a program, this is `peft` with a signal
that the process sends to itself at such a moment, so that a kill hits the same place each time:

    python -m tests.moments SIGKILL os.rename .partial-step-000006 train recipe.yaml
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

Listener = Callable[[str, tuple[object, ...]], None]

_listeners: list[Listener] = []


def _announce(event: str, arguments: tuple[object, ...]) -> None:
    for listener in _listeners:
        listener(event, arguments)


@cache
def _install() -> None:
    sys.addaudithook(_announce)  # once: it cannot be removed, and does nothing while nobody listens


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Call `listener(event, arguments)` at every audit event of this process."""
    _install()
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


@contextmanager
def counted(event: str) -> Iterator[list[tuple[object, ...]]]:
    """Collect the arguments of every such event of this process."""
    found: list[tuple[object, ...]] = []

    def note(name: str, arguments: tuple[object, ...]) -> None:
        if name == event:
            found.append(arguments)

    with listening(note):
        yield found


@contextmanager
def signal_at(number: signal.Signals, event: str, text: str) -> Iterator[None]:
    """Send this process a signal at the first such event whose first argument (a path) contains `text`."""
    sent: list[bool] = []

    def strike(name: str, arguments: tuple[object, ...]) -> None:
        if name == event and not sent and text in str(arguments[0]):
            sent.append(True)
            os.kill(os.getpid(), number)

    with listening(strike):
        yield
    assert sent, f"no {event} of {text}"


def peft_with_signal(
    number: signal.Signals, event: str, text: str, *arguments: object
) -> subprocess.CompletedProcess[str]:
    """Run `peft ARGUMENTS` in a process of its own, which sends itself a signal at that moment."""
    command = [sys.executable, "-m", "tests.moments", number.name, event, text, *map(str, arguments)]
    return subprocess.run(command, cwd=Path(__file__).resolve().parents[1], capture_output=True, text=True)


def main(name: str, event: str, text: str, *arguments: str) -> None:
    """Run `peft ARGUMENTS` in this process."""
    from peftcli.cli.app import main as peft

    with signal_at(signal.Signals[name], event, text):
        peft(list(arguments))


if __name__ == "__main__":
    main(*sys.argv[1:])
