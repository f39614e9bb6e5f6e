"""Read the rows of text files one by one: jsonl, json, csv, tsv, txt. Only the current row is in memory."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peftcli.data.read.compressed import LONGEST_LINE, decode, text_lines
from peftcli.data.read.half_characters import BOTH_HALVES, HALF, holds_half_character
from peftcli.data.read.nested_values import DEEPEST, too_deep
from peftcli.data.read.records import ONE_OF_THE_TWO, BadRow, GivenTwice, Record, excerpt, in_words
from peftcli.errors import Problem, UserError
from peftcli.process_state import CellsOfAnySize

Rows = Iterator[Record | BadRow]


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object's keys and values.

    Raises:
        GivenTwice: a key has two values, of which JSON does not say which one counts.
    """
    made = dict(pairs)
    if len(made) < len(pairs):
        raise GivenTwice(next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1))
    return made


_ROWS = json.JSONDecoder(object_pairs_hook=_each_key_once)


def read_jsonl(path: Path, name: str) -> Rows:
    """Yield the rows of a file with one JSON object a line; blank lines are passed over."""
    for number, raw in text_lines(path, name):
        if raw.isspace():
            continue
        try:
            text = decode(raw)
        except ValueError as error:
            yield BadRow(name, number, str(error), excerpt(raw.decode("latin-1")), "UTF-8 text")
            continue
        try:
            value = _ROWS.decode(text)
        except GivenTwice as error:
            yield BadRow(name, number, str(error), excerpt(text.strip()), ONE_OF_THE_TWO)
            continue
        except (ValueError, RecursionError) as error:
            yield BadRow(name, number, f"broken JSON: {error}", excerpt(text.strip()), "one JSON object on the line")
            continue
        if too_deep(value, text):
            message = f"nested more than {DEEPEST} levels deep"
            yield BadRow(name, number, message, excerpt(text.strip()), "a flatter object")
        elif "\\ud" in text.lower() and holds_half_character(value):
            yield BadRow(name, number, HALF, excerpt(text.strip()), BOTH_HALVES)
        elif isinstance(value, dict):
            yield Record(name, number, value)
        else:
            message = f"the line holds {in_words(value)}"
            yield BadRow(name, number, message, excerpt(text.strip()), "one JSON object on the line")


def read_txt(path: Path, name: str) -> Rows:
    """Yield every line that is not blank as a row with the column `text`."""
    for number, raw in text_lines(path, name):
        if raw.isspace():
            continue
        try:
            yield Record(name, number, {"text": decode(raw).rstrip("\r\n")})
        except ValueError as error:
            yield BadRow(name, number, str(error), excerpt(raw.decode("latin-1")), "UTF-8 text")


def read_tsv(path: Path, name: str) -> Rows:
    """Yield the rows of a tab-separated file with a header; quotes are ordinary characters."""
    header: list[str] = []
    for number, raw in text_lines(path, name):
        if raw.isspace() and b"\t" not in raw:
            continue
        try:
            line = decode(raw).rstrip("\r\n")
        except ValueError as error:
            yield BadRow(name, number, str(error), excerpt(raw.decode("latin-1")), "UTF-8 text")
            continue
        cells = line.split("\t")
        if not header:
            header = _header(cells, name, number)
        elif len(cells) != len(header):
            yield _ragged(name, number, len(cells), header, line)
        else:
            yield Record(name, number, dict(zip(header, cells, strict=True)))


def read_csv(path: Path, name: str) -> Rows:
    """Yield the rows of a comma-separated file with a header, after RFC 4180; a row's number is its first line.

    Office programs of many countries separate with semicolons, and some say so in a first line such as `sep=;`.
    """
    lines = _CsvLines(path, name)
    separator, head = _separator(path, name)
    for _ in range(head):
        next(lines)
    reader = csv.reader(lines, strict=True, delimiter=separator)
    any_size = CellsOfAnySize(LONGEST_LINE)
    header: list[str] = []
    while True:
        first = reader.line_num + 1 + head
        try:
            with any_size:
                cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            message, expected = f"broken CSV: {error}", "quotes closed, and doubled inside"
            if "new-line character" in str(error):
                message, expected = (
                    "the lines end with carriage returns alone",
                    "other line ends (mac2unix)",
                )
            yield BadRow(name, first, message, excerpt(lines.last), expected)
            lines.take_bad()
            if lines.done:  # an open quote swallowed the rest of the file
                return
            continue
        lines.begin_row()
        if bad := lines.take_bad():
            yield bad
        elif not cells:
            continue
        elif not header:
            header = _header(cells, name, first)
        elif len(cells) != len(header):
            yield _ragged(name, first, len(cells), header, lines.last)
        else:
            yield Record(name, first, dict(zip(header, cells, strict=True)))


def _separator(path: Path, name: str) -> tuple[str, int]:
    """Return what separates the cells, and how many lines come before the header.

    It is the comma, except where the first line names another one or the header has semicolons or tabs and no comma.
    """
    _, first = next(text_lines(path, name), (1, b""))
    line = first.decode("utf-8", "replace").strip("\r\n")
    if line.startswith("sep=") and len(line) == 5:
        return line[4], 1
    others = [mark for mark in ";\t" if mark in line and "," not in line and '"' not in line]
    return (others[0] if others else ","), 0


class _CsvLines:
    """The decoded lines of a CSV file, remembering what a message needs: the last line and undecodable ones."""

    def __init__(self, path: Path, name: str) -> None:
        self.name, self.last, self.done = name, "", False
        self._begun, self._bytes = 1, 0  # line at which the row begins, and its bytes so far
        self._bad: BadRow | None = None
        self._lines = text_lines(path, name)

    def take_bad(self) -> BadRow | None:
        """Return the undecodable line among those since the last call, and forget it."""
        bad, self._bad = self._bad, None
        return bad

    def begin_row(self) -> None:
        """Count the bytes of the next row: quotes that stay open would take in the whole file."""
        self._bytes = 0

    def __iter__(self) -> _CsvLines:
        return self

    def __next__(self) -> str:
        try:
            number, raw = next(self._lines)
        except StopIteration:
            self.done = True
            raise
        self._begun = number if not self._bytes else self._begun
        self._bytes += len(raw)
        if self._bytes > LONGEST_LINE:
            text = f"the row has more than {LONGEST_LINE:,} bytes"
            raise UserError(
                Problem(text, file=self.name, line=self._begun, suggestion="look for a quote that is not closed")
            )
        try:
            self.last = decode(raw)
        except ValueError as error:
            self.last = raw.decode("latin-1")
            self._bad = BadRow(self.name, number, str(error), excerpt(self.last), "UTF-8 text")
        return self.last


def _header(cells: list[str], name: str, line: int) -> list[str]:
    names = [cell.strip() for cell in cells]
    twice = sorted(cell for cell, times in Counter(names).items() if times > 1)
    if twice or "" in names:
        what = (
            f"the header names {', '.join(twice)} twice" if twice and twice != [""] else "the header has an empty name"
        )
        remedy = "give every column a name of its own"
        if not names[0]:
            remedy += "; pandas leaves out the name of its row numbers: write the file with index=False"
        raise UserError(Problem(what, file=name, line=line, suggestion=remedy))
    return names


def _ragged(name: str, row: int, cells: int, header: list[str], line: str) -> BadRow:
    expected = f"{len(header)} cells: {', '.join(header)}"
    return BadRow(name, row, f"the row has {cells} cells", excerpt(line.rstrip("\r\n")), expected)
