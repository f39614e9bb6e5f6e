"""Standard output and standard error of a command, made fit for every terminal, pipe and file.

A character that the terminal lacks is shown escaped. What goes to a stream that the caller closed is lost. Messages
never end a command; a result that cannot be printed does.
"""

from __future__ import annotations

import codecs
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from peftcli.errors import PeftCliError
from peftcli.write_errors import CannotWrite

ESCAPE = "peftcli.escape"
"""Name of a codecs error handler that writes what an encoding lacks as JSON does: `\\uXXXX`."""


class ReaderLeft(PeftCliError):
    """Nobody reads standard output any more, as in `peft predict RUN --input FILE | head`; there is nothing to say."""

    exit_code = 0


class _Results(io.FileIO):
    """Standard output: the first error ends the command, what comes later is lost."""

    _failed = False

    def write(self, data: Any) -> int:
        """Write bytes.

        Raises:
            CannotWrite: the system refuses.
            ReaderLeft: the pipe's other end is closed.
        """
        if self._failed:
            return memoryview(data).nbytes
        self._failed = True
        try:
            written = super().write(data)
        except BrokenPipeError:
            raise ReaderLeft from None
        except OSError as error:
            reason = f"standard output cannot be written: {error.strerror or error}"
            raise CannotWrite(reason, suggestion="send it to a file on another disk, or to a pipe") from error
        self._failed = False
        return written


class _Messages(io.FileIO):
    """Standard error: what the system refuses is lost."""

    def write(self, data: Any) -> int:
        """Write bytes."""
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


@contextmanager
def fit_streams() -> Iterator[None]:
    """Replace the process's own standard streams inside; those that a caller has put in their place are left alone."""
    _open_closed_ones()
    out: TextIO = sys.stdout
    err: TextIO = sys.stderr
    if err is sys.__stderr__:
        sys.stderr = _fit(err, _Messages)
    if out is sys.__stdout__:
        sys.stdout = _fit(out, _Results)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(PeftCliError):
                stream.flush()
        sys.stdout, sys.stderr = out, err


def _open_closed_ones() -> None:
    """Open the null device for each stream that is closed: else the next file that is opened would be the stream."""
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115  as long as the process
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # a caller's own stream may have no number
            os.set_inheritable(stream.fileno(), True)


def _fit(stream: TextIO, kind: type[io.FileIO]) -> TextIO:
    if os.name == "nt" and stream.isatty():  # a console takes no bytes
        return stream
    raw = kind(stream.fileno(), "wb", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors=ESCAPE,
        line_buffering=stream.isatty() or kind is _Messages,
    )


def _escaped(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2)), error.end


codecs.register_error(ESCAPE, _escaped)
