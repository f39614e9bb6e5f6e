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

from peftcli.data.read.compressed import LONGEST_LINE, text_lines
from peftcli.data.read.half_characters import BOTH_HALVES, HALF, HalfCharacters
from peftcli.data.read.nested_values import DEEPEST
from peftcli.data.read.records import ONE_OF_THE_TWO, BadRow, GivenTwice, Record, excerpt, in_words
from peftcli.data.read.text_files import Rows, read_jsonl
from peftcli.errors import Problem, UserError

BLOCK = 1 << 16  # bytes parsed at a time
OBJECT = 32  # bytes of memory that a number, a list or an object takes at least

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
    halves = HalfCharacters()
    events = chain.from_iterable(_parsed(path, name, halves))
    if not _skip_to_list(events, name, part):
        return
    for number, (value, half, twice) in enumerate(_elements(events, name, halves), 1):
        if half:
            yield BadRow(name, number, HALF, excerpt(json.dumps(value)), BOTH_HALVES)
        elif twice is not None:
            yield BadRow(name, number, str(GivenTwice(twice)), excerpt(json.dumps(value)), ONE_OF_THE_TWO)
        elif isinstance(value, dict):
            yield Record(name, number, value)
        else:
            message = f"the element is {in_words(value)}"
            yield BadRow(name, number, message, excerpt(repr(value)), "an object")
    for _ in events:  # what follows the list must be JSON, too
        pass


def _parsed(path: Path, name: str, halves: HalfCharacters) -> Iterator[list[Event]]:
    """Yield the events of a file, those of one line at most at a time, so that an error can name its line.

    Raises:
        UserError: the file is not JSON, or one value in it is too long.
    """
    events: Any = ijson.sendable_list()
    parser = ijson.basic_parse_coro(events)
    line, blank, since = 1, True, 0  # bytes since the last value was complete
    try:
        for line, raw in text_lines(path, name, BLOCK):
            blank = blank and raw.isspace()
            try:
                if piece := halves.marked(raw):  # an empty one would be the end
                    parser.send(piece)
            # ijson hands on what Python raises for a number of thousands of digits
            except (ijson.JSONError, ValueError, ArithmeticError, SystemError) as error:
                raise _broken(name, _reason(error), line, raw) from error
            since = 0 if events else since + len(raw)
            if since > LONGEST_LINE:
                raise _broken(name, f"a value takes more than {LONGEST_LINE:,} bytes", line)
            yield events
            events.clear()
        if blank:
            return
        try:
            if halves.held:
                parser.send(halves.held)
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
    events = chain.from_iterable(_parsed(path, name, HalfCharacters()))
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


def _elements(events: Iterator[Event], name: str, halves: HalfCharacters) -> Iterator[tuple[Any, bool, str | None]]:
    """Yield the elements of the list whose beginning was taken, and take its end.

    Numbers are those of Python's `json`: int, or float.

    Yields:
        the element, whether half a character is in it, and a key that an object in it has twice.
    """
    rows: list[Any] = []
    inside: Any = rows  # the list or object that is being filled
    around: list[Any] = []  # the lists and objects that hold it, from the outermost
    key, half, size, number = "", False, 0, 1
    twice: str | None = None
    for event, value in events:
        if event == "map_key":
            key = value
            half = half or halves.are_in(value)
            twice = key if key in inside else twice
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
            elif type(value) is str:
                half = half or halves.are_in(value)
                size += len(value)
            size += OBJECT
            if type(inside) is list:
                inside.append(value)
            else:
                inside[key] = value
            if begins:
                around.append(inside)
                inside = value
                if len(around) > DEEPEST:
                    raise _broken(name, f"row {number} is nested more than {DEEPEST} levels deep")
            if size > LONGEST_LINE:
                raise _broken(name, f"row {number} takes more than {LONGEST_LINE:,} bytes")
        if not around:
            yield rows.pop(), half, twice
            number, half, size, twice = number + 1, False, 0, None


def _reason(error: Exception) -> str:
    """Return the first line of a parser's message; ijson gives some of them as the repr of bytes."""
    return (str(error).removeprefix("b'").replace("\\n", "\n").splitlines() or [type(error).__name__])[0].rstrip(".")


def _broken(name: str, message: str, line: int | None = None, raw: bytes = b"") -> UserError:
    remedy = "a .json data file holds a list of objects, or an object with such a list; one object per line is .jsonl"
    if b"NaN" in raw or b"Infinity" in raw:
        remedy = f"JSON has no NaN and no Infinity: write null for them; {remedy}"
    return UserError(Problem(f"broken JSON: {message}", file=name, line=line, suggestion=remedy))


def _is_json_lines(path: Path, name: str) -> bool:
    """Whether the first line alone is a JSON object and another line follows it."""
    lines = text_lines(path, name, BLOCK)
    first = bytearray()
    for number, piece in lines:
        if number > 1:
            return _is_json(first) and any(not line.isspace() for line in chain([piece], (line for _, line in lines)))
        first += piece
        if not first.startswith(b"{") or len(first) > LONGEST_LINE:
            return False
    return False


def _is_json(line: bytearray) -> bool:
    try:
        return line.rstrip().endswith(b"}") and json.loads(line) is not None
    except (ValueError, RecursionError):
        return False
