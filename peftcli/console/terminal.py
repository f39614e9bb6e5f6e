"""The boundary to the terminal: whatever a command writes, text from files cannot steer the terminal.

`shown_streams` puts a filter before standard output and standard error, so that no command has to think of it. Colours
and the moving bar are drawn by rich, which writes past the filter on a terminal; there a hook filters the text of each
piece before rich adds its own sequences.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from peftcli.progress import end_watching
from peftcli.shown_text import hide_nothing, shown

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

_BARS = re.compile(r"(?:\x1b\[A)+")
"""What progress bars of libraries (downloads of the hub) write beside a carriage return in front of their text."""


_WORDS = re.compile(r"[^\s`]*`[^`]*`\S*|\S+")
_FURTHER = 4
"""Columns by which the lines that follow one begin further in, as the remedy of an error does."""


class ShownStream:
    """A text stream that writes out control characters, and what its encoding lacks."""

    def __init__(self, stream: TextIO) -> None:
        self.behind = stream

    def write(self, text: str) -> int:
        """Write a text; returns its length, as streams do."""
        first = 1 if text.startswith("\r") else 0
        safe = text if _BARS.fullmatch(text) else text[:first] + shown(text[first:])
        encoding = self.behind.encoding or "utf-8"
        try:
            safe.encode(encoding)
        except UnicodeEncodeError:
            safe = safe.encode(encoding, "backslashreplace").decode(encoding)
        self.behind.write(safe)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        """Return everything else from the stream behind: flush, isatty, encoding, fileno."""
        return getattr(self.behind, name)


@contextmanager
def shown_streams() -> Iterator[None]:
    """Filter standard output and standard error within the context."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(_filtered, before)
    hide_nothing()
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def _filtered(stream: Any) -> Any:
    return stream if stream is None or isinstance(stream, ShownStream) else ShownStream(stream)


def data_stream() -> TextIO:
    """Return standard output for JSON: as it is in a file or a pipe, filtered on a terminal."""
    stream: Any = sys.stdout
    return stream.behind if isinstance(stream, ShownStream) and not stream.isatty() else stream


def wrapped(text: str, width: int) -> str:
    """Return a message in lines of at most `width` columns, parted between words; a command in backticks stays whole.

    Lines of the message stay lines, and what follows one's first begins below it, a little further in.
    """
    return "\n".join(line for given in text.split("\n") for line in _parts(given, width))


def _parts(line: str, width: int) -> list[str]:
    words = _WORDS.findall(line)
    indent = " " * (len(line) - len(line.lstrip(" ")))
    if len(line) <= width or not words or width <= len(indent) + _FURTHER:
        return [line]
    further = indent or " " * _FURTHER
    lines = [indent + words[0]]
    for word in words[1:]:
        if len(lines[-1]) + 1 + len(word) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(further + word)
    return lines


def say(text: str, *, result: bool = False) -> None:
    """Write a message, in lines that fit where it goes to a terminal.

    Args:
        text: the message.
        result: it is what was asked for, and goes to standard output; other messages go to standard error.
    """
    import shutil

    stream = sys.stdout if result else sys.stderr
    if result:
        end_watching()  # a bar that is still drawn would stand in front of it
    if stream.isatty():
        text = wrapped(text, shutil.get_terminal_size().columns)
    print(text, file=stream, flush=True)


def wrote(file: Path, *commands: str) -> None:
    """Say on standard error which file was written, and what to type next: commands, a line each and never parted."""
    say(f"wrote {file}")
    if commands:
        print("next", *(f"  {command}" for command in commands), sep="\n", file=sys.stderr, flush=True)


def spinner_for(console: Console) -> str:
    """Return the name of a spinner whose marks the console's encoding has."""
    return "line" if console.options.ascii_only else "dots"


def safe_console(*, stderr: bool = False, width: int | None = None, soft_wrap: bool = False) -> Console:
    """Return a console on standard output or standard error whose texts are shown, and whose own sequences are sent.

    One on standard output is for a result: a bar that is still drawn would stand in front of it, and ends.

    Args:
        stderr: standard error instead of standard output.
        width: columns; None is the terminal's.
        soft_wrap: never wrap lines.
    """
    from rich.console import Console

    if not stderr:
        end_watching()
    stream: Any = sys.stderr if stderr else sys.stdout
    behind = stream.behind if isinstance(stream, ShownStream) and stream.isatty() else stream
    console = Console(file=behind, width=width, highlight=False, soft_wrap=soft_wrap)
    from peftcli.console.shown_segments import ShownSegments

    console.push_render_hook(ShownSegments())
    return console
