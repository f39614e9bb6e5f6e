"""Read a JSON file element by element: a list of objects, one object that holds such a list, or JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from decimal import Decimal
from itertools import chain
from pathlib import Path
from typing import Any

import ijson

from peftcli.data.read.compressed import text_lines
from peftcli.data.read.records import BadRow, Record, excerpt
from peftcli.data.read.text_files import Rows, read_jsonl
from peftcli.errors import Problem, UserError

BLOCK = 1 << 16  # bytes parsed at a time
DEEPEST = 500  # lists and objects inside each other in one row; Python's own JSON functions stop below 1,000

Event = tuple[str, Any]  # ijson's: what begins, ends or stands here, and the value or the key


def read_json(path: Path, name: str, part: str = "") -> Rows:
    """Yield the objects of a JSON file; a `.json` file that holds one object a line is read as such.

    Args:
        part: key of the list of rows, where the file is an object of several lists; '' takes the first list.

    Raises:
        UserError: the file is not JSON, or holds no list of rows.
    """
    if _is_json_lines(path, name):
        yield from read_jsonl(path, name)
        return
    events = chain.from_iterable(_parsed(path, name))
    if not _skip_to_list(events, name, part):
        return
    for number, value in enumerate(_elements(events, name), 1):
        if isinstance(value, dict):
            yield Record(name, number, value)
        else:
            message = f"the element is a {type(value).__name__}"
            yield BadRow(name, number, message, excerpt(repr(value)), "an object")
    for _ in events:  # what follows the list must be JSON, too
        pass


def _parsed(path: Path, name: str) -> Iterator[list[Event]]:
    """Yield the events of a file, those of one line at most at a time, so that an error can name its line.

    Raises:
        UserError: the file is not JSON.
    """
    events: Any = ijson.sendable_list()
    parser = ijson.basic_parse_coro(events)
    line, blank = 1, True
    try:
        for line, raw in text_lines(path, name, BLOCK):
            blank = blank and raw.isspace()
            try:
                parser.send(raw)
            # ijson hands on what Python raises for a number of thousands of digits
            except (ijson.JSONError, ValueError, ArithmeticError, SystemError) as error:
                raise _broken(name, _reason(error), line, raw) from error
            yield events
            events.clear()
        if blank:
            return
        try:
            parser.close()
        except (ijson.JSONError, ValueError) as error:
            raise _broken(name, "the file ends too early", line) from error
        yield events
    finally:
        with suppress(ijson.JSONError, ValueError):  # whoever needs a few rows only leaves the rest unread
            parser.close()


def row_lists(path: Path, name: str) -> list[str]:
    """Return the keys under which a JSON object holds lists of objects; nothing for any other file.

    Raises:
        UserError: the file is not JSON.
    """
    if _is_json_lines(path, name):
        return []
    events = chain.from_iterable(_parsed(path, name))
    if next(events, ("", None))[0] != "start_map":
        return []
    found: list[str] = []
    depth, key, begun = 1, "", False
    for event, value in events:
        if event == "map_key" and depth == 1:
            key = value
        if begun and event == "start_map":
            found.append(key)
        begun = event == "start_array" and depth == 1
        depth += event.startswith("start_") - event.startswith("end_")
    return found


def _skip_to_list(events: Iterator[Event], name: str, part: str) -> bool:
    """Take the events up to the beginning of the list of rows; return False for an empty file.

    It is the file's own list, or in the file's object the list called `part`, or the first one if that is ''.
    """
    event, value = next(events, ("", None))
    if event in ("", "start_array"):
        return bool(event)
    if event != "start_map":
        raise _broken(name, f"the file starts with {json.dumps(value, default=str)}")
    keys: list[str] = []
    depth = 1
    for event, value in events:
        if event == "start_array" and depth == 1 and (not part or keys[-1] == part):
            return True
        if event == "map_key" and depth == 1:
            keys.append(value)
        depth += event.startswith("start_") - event.startswith("end_")
        if depth == 0:
            break
    raise _broken(name, f"the object has no list of rows; its keys are {', '.join(keys) or 'none'}")


def _elements(events: Iterator[Event], name: str) -> Iterator[Any]:
    """Yield the elements of the list whose beginning was taken, and take its end.

    Numbers are those of Python's `json`: int, or float.
    """
    rows: list[Any] = []
    inside: Any = rows  # the list or object that is being filled
    around: list[Any] = []  # the lists and objects that hold it, from the outermost
    key = ""
    number = 1
    for event, value in events:
        if event == "map_key":
            key = value
            continue
        if event == "end_map" or event == "end_array":
            if not around:
                return
            inside = around.pop()
        else:
            begins = event == "start_map" or event == "start_array"
            if begins:
                value = {} if event == "start_map" else []
            elif type(value) is Decimal:
                value = float(value)
            if type(inside) is list:
                inside.append(value)
            else:
                inside[key] = value
            if begins:
                around.append(inside)
                inside = value
                if len(around) > DEEPEST:
                    raise _broken(name, f"row {number} is nested more than {DEEPEST} levels deep")
        if not around:
            yield rows.pop()
            number += 1


def _reason(error: Exception) -> str:
    """Return the first line of a parser's message; ijson gives some of them as the repr of bytes."""
    return (str(error).removeprefix("b'").replace("\\n", "\n").splitlines() or [type(error).__name__])[0].rstrip(".")


def _broken(name: str, message: str, line: int | None = None, raw: bytes = b"") -> UserError:
    remedy = "a .json data file holds a list of objects, or one object with such a list; one object a line is .jsonl"
    if b"NaN" in raw or b"Infinity" in raw:
        remedy = f"JSON has no NaN and no Infinity: write null for them; {remedy}"
    return UserError(Problem(f"broken JSON: {message}", file=name, line=line, suggestion=remedy))


def _is_json_lines(path: Path, name: str) -> bool:
    """Whether the first line alone is a JSON object and another line follows it."""
    lines = text_lines(path, name)
    _, first = next(lines, (1, b""))
    if not first.startswith(b"{") or not first.rstrip().endswith(b"}"):
        return False
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return False
    return any(not line.isspace() for _, line in lines)
