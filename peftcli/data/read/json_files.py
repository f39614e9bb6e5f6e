"""Read a JSON file element by element: a list of objects, one object that holds such a list, or JSON lines."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from peftcli.data.read.compressed import SNIFF, open_bytes, refuse_binary
from peftcli.data.read.records import BadRow, Record, excerpt
from peftcli.data.read.text_files import Rows, read_jsonl
from peftcli.errors import Problem, UserError

BLOCK = 1 << 18  # bytes read at a time; doubled while one element does not fit
_SPACE = " \t\r\n"


def read_json(path: Path, name: str) -> Rows:
    """Yield the objects of a JSON file; a `.json` file that holds one object a line is read as such."""
    if _is_json_lines(path, name):
        yield from read_jsonl(path, name)
        return
    with open_bytes(path) as handle:
        text = _Text(handle, name)
        opening = text.peek()
        if opening == "":
            return
        if opening == "{":
            text.find_list()
        elif opening != "[":
            text.fail(f"the file starts with {opening!r}")
        for number, value in enumerate(text.elements(), 1):
            if isinstance(value, dict):
                yield Record(name, number, value)
            else:
                yield BadRow(
                    name, number, f"the element is a {type(value).__name__}", excerpt(repr(value)), "an object"
                )


class _Text:
    """A window of decoded text that grows as elements are taken out of it."""

    def __init__(self, handle: IO[bytes], name: str) -> None:
        self.name, self.line = name, 1
        self._handle = handle
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._json = json.JSONDecoder()
        self._buffer, self._at, self._block, self._ended = "", 0, BLOCK, False

    def peek(self) -> str:
        """Return the next character that is not white space, or '' at the end of the file."""
        while True:
            while self._at < len(self._buffer) and self._buffer[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._buffer) or not self._more():
                return self._buffer[self._at : self._at + 1]

    def take(self, wanted: str) -> str:
        """Take the next character, which must be one of `wanted`."""
        char = self.peek()
        if not char or char not in wanted:
            self.fail(f"expected one of {' '.join(wanted)}, found {char!r}" if char else "the file ends too early")
        self._at += 1
        return char

    def value(self) -> Any:
        """Take the next JSON value."""
        self.peek()
        while True:
            try:
                value, end = self._json.raw_decode(self._buffer, self._at)
            except (ValueError, RecursionError) as error:
                if not self._more():
                    self.fail(str(error))
                continue
            if end == len(self._buffer) and self._more():
                continue  # a number may go on in the next block
            self._at = end
            return value

    def find_list(self) -> None:
        """Go forward in an object to its first list of objects."""
        self.take("{")
        keys = []
        while self.peek() != "}":
            key = self.value()
            keys.append(str(key))
            self.take(":")
            if self.peek() == "[":
                return
            self.value()
            if self.take(",}") == "}":
                break
        self.fail(f"the object has no list of rows; its keys are {', '.join(keys) or 'none'}")

    def elements(self) -> Iterator[Any]:
        """Yield the elements of the list that comes next."""
        self.take("[")
        if self.peek() == "]":
            return
        while True:
            yield self.value()
            if self.take(",]") == "]":
                return

    def fail(self, message: str) -> None:
        """Raise a `UserError` at the current line."""
        line = self.line + self._buffer.count("\n", 0, self._at)
        raise UserError(
            Problem(
                f"broken JSON: {message}",
                file=self.name,
                line=line,
                suggestion="a .json data file holds a list of objects, or one object with such a list; "
                "one object a line is .jsonl",
            )
        )

    def _more(self) -> bool:
        """Read another block behind what is left; False at the end of the file."""
        if self._ended:
            return False
        try:
            raw = self._handle.read(self._block)
            text = self._decoder.decode(raw, final=not raw)
        except UnicodeDecodeError as error:
            self.fail(f"not UTF-8: {error}")
            raise  # fail() always raises; this tells the type checker
        self.line += self._buffer.count("\n", 0, self._at)
        left = self._buffer[self._at :]
        # a value longer than the window is parsed again after each block: doubling keeps that linear
        self._block = max(BLOCK, 2 * len(left))
        self._buffer, self._at, self._ended = left + text, 0, not raw
        return bool(raw)


def _is_json_lines(path: Path, name: str) -> bool:
    """Whether the first line alone is a JSON object and another line follows it."""
    with open_bytes(path) as handle:
        first = handle.readline().removeprefix(codecs.BOM_UTF8)
        refuse_binary(first[:SNIFF], name)
        if not first.startswith(b"{") or not first.rstrip().endswith(b"}"):
            return False
        try:
            json.loads(first)
        except ValueError:
            return False
        return any(not line.isspace() for line in handle)
