"""metrics.jsonl and samples.jsonl: JSON objects with a `step`, one a line, appended while a run goes on.

They are for people and plots, and no part of the run's state: a damaged line is dropped and told, never in the way.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftcli.atomic import append_text, write_text
from peftcli.errors import Problem, UserError
from peftcli.shown_text import some_of
from peftcli.write_errors import OTHER_RUN


class StepLines:
    """The lines of one run; the file need not exist."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, *lines: Mapping[str, Any]) -> None:
        """Add lines; each has a `step`."""
        append_text(self.path, "".join(line_text(line) for line in lines), instead=OTHER_RUN)

    def lines(self) -> list[dict[str, Any]]:
        """Return the lines that are whole.

        Raises:
            UserError: the file cannot be read at all.
        """
        return [line for _, line in self._read()[0]]

    def damaged(self) -> bool:
        """Return whether a line is damaged."""
        return bool(self._read()[1])

    def cut(self, step: int) -> str | None:
        """Drop what was written after `step`, since a resumed run writes it again, and lines that are damaged.

        Returns:
            Which lines were damaged, as a sentence; None if none was. A last line that was being written when the run
            was killed is no damage.
        """
        found, damaged = self._read()
        if self.path.is_file():
            write_text(
                self.path, "".join(f"{text}\n" for text, line in found if line["step"] <= step), instead=OTHER_RUN
            )
        if not damaged:
            return None
        return f"{self.path}: {'line' if len(damaged) == 1 else 'lines'} {some_of(damaged, 5)} dropped: damaged"

    def _read(self) -> tuple[list[tuple[str, dict[str, Any]]], list[int]]:
        """Return the whole lines with their text, and the numbers of the others, from 1."""
        if not self.path.exists():
            return [], []
        try:
            if not self.path.is_file():  # a pipe could be read for ever
                raise OSError("it is no file")
            content = self.path.read_bytes()
        except OSError as error:
            reason = f"cannot be read: {error.strerror or error}"
            raise UserError(Problem(reason, file=str(self.path), suggestion="move it out of the way")) from error
        *ended, torn = content.split(b"\n")  # the last is empty, unless the last line has no end
        whole, damaged = [], []
        for number, text in enumerate([*ended, torn], start=1):
            line = _parsed(text)
            if line is not None:
                whole.append((text.decode("utf-8"), line))
            elif number <= len(ended):
                damaged.append(number)
        return whole, damaged


def line_text(line: Mapping[str, Any]) -> str:
    """Return an object as a line of JSON."""
    text = json.dumps(finite(line), allow_nan=False, ensure_ascii=False) + "\n"
    return text.encode("utf-8", "backslashreplace").decode("utf-8")  # half a surrogate pair is an escape in JSON


def _parsed(text: bytes) -> dict[str, Any] | None:
    """Return a line's object; None if it is none, or has no step."""
    try:
        line = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict) or not isinstance(line.get("step"), int) or isinstance(line["step"], bool):
        return None
    return line


def finite(value: Any) -> Any:
    """Return plain data in which NaN and infinities, which JSON lacks, are null."""
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
