"""Measurements in a process of their own: what they load, compile or break is gone when they end.

Such a process is a module that is run with arguments, `answer`s with one JSON object, and ends with its parent. It is
one process, also where its parent is one of several that a launcher started.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from tempfile import TemporaryFile
from typing import IO, Any

from peftcli.distributed.launching import SIZES
from peftcli.errors import UserError
from peftcli.record.shown_numbers import duration


class ProcessFailed(UserError):
    """A process ended without an answer."""


def ask(module: str, arguments: Sequence[str], *, seconds: float | None = None) -> Any:
    """Run a module in a process of its own; return what it answers.

    Args:
        seconds: how long it may take; it is killed then.

    Raises:
        UserError: what its own `UserError` said.
        ProcessFailed: it was killed, failed, or took too long.
    """
    line = [sys.executable, "-m", module, *arguments]
    with TemporaryFile() as out, TemporaryFile() as said:
        # the process ends when this end of its standard input closes, however this process ends
        with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=out, stderr=said, env=_own_environment()) as process:
            try:
                code = process.wait(seconds)
            except subprocess.TimeoutExpired as error:
                raise ProcessFailed(f"it took longer than {duration(seconds or 0)}") from error
            finally:
                process.kill()  # nothing, if it has ended
        answered = _last_line(out)
        if code == UserError.exit_code and answered:
            raise UserError(json.loads(answered))
        if code:
            raise ProcessFailed(_last_line(said) or "it was killed: memory may have run out")
        return json.loads(answered)


def _own_environment() -> dict[str, str]:
    """Return the environment without what tells how many processes a launcher started."""
    return {name: value for name, value in os.environ.items() if name not in SIZES}


def answer(compute: Callable[[], object]) -> None:
    """Print what a process computes for its parent, or what its `UserError` says; end with the parent."""
    threading.Thread(target=_end_with_parent, daemon=True, name="parent watch").start()
    try:
        print(json.dumps(compute()))
    except UserError as error:
        print(json.dumps(str(error)))  # libraries write on standard error, too
        sys.exit(UserError.exit_code)


def _end_with_parent() -> None:
    """Wait for the end of standard input, which the parent holds open."""
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os._exit(1)


def _last_line(file: IO[bytes]) -> str:
    file.seek(0)
    return (file.read().decode(errors="replace").strip().splitlines() or [""])[-1]
