"""One row of a file, and what can be wrong with it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

EXCERPT = 160  # characters of a row shown in a message: enough to recognise it, short enough for a terminal


@dataclass(frozen=True, slots=True)
class Record:
    """A row as the file holds it.

    Args:
        source: the file, as the user named it.
        row: 1-based physical line in line formats, 1-based element otherwise.
        values: column to value.
    """

    source: str
    row: int
    values: dict[str, Any]


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used: where it is, what is wrong, how it looks, what was expected."""

    source: str
    row: int
    message: str
    excerpt: str = ""
    expected: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return the row as plain data, for the run directory."""
        return {
            "source": self.source,
            "row": self.row,
            "message": self.message,
            "excerpt": self.excerpt,
            "expected": self.expected,
        }


class RowError(Exception):
    """A row does not have the shape that its format asks for.

    Args:
        message: what is wrong.
        expected: what the row should look like.
    """

    def __init__(self, message: str, expected: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.expected = expected

    def at(self, record: Record) -> BadRow:
        """Return the error with the place and the text of its row."""
        return BadRow(record.source, record.row, self.message, excerpt(record.values), self.expected)


class GivenTwice(ValueError):
    """An object of JSON has two values for one key."""

    def __init__(self, key: str) -> None:
        super().__init__(f"the key {key!r} is given twice")


ONE_OF_THE_TWO = "one value for each key"


_KINDS: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (bool, "true or false"), (str, "text"), ((int, float), "a number"), (Mapping, "an object"), (list, "a list"),
)  # fmt: skip


def in_words(value: Any) -> str:
    """Return what a value of a row is, in words for messages: `a list`, `an object`, `null`."""
    if value is None:
        return "null"
    return next((words for kind, words in _KINDS if isinstance(value, kind)), f"a {type(value).__name__}")


def excerpt(values: Mapping[str, Any] | str) -> str:
    """Return the beginning of a row as one printable line."""
    text = values if isinstance(values, str) else _dump(values)
    line = "".join(char if char.isprintable() else " " for char in text[: EXCERPT + 1])
    return line if len(text) <= EXCERPT else line[: EXCERPT - 1] + "…"


def _dump(values: Mapping[str, Any]) -> str:
    # long strings are cut first: a ten-megabyte cell must not be serialised to show its beginning
    short = {key: value[:EXCERPT] if isinstance(value, str) else value for key, value in values.items()}
    return json.dumps(short, ensure_ascii=False, default=str)
