"""The rows of a predicted file once more, so that a prediction stands beside what it is about."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from peftcli.data.other_file import FIRST_ROWS
from peftcli.data.read.records import Record
from peftcli.data.read.sources import resolve_source
from peftcli.data.recognition.examples import Tagged
from peftcli.data.recognition.recognise import recognise
from peftcli.data.recognition.row_format import RecognisedFormat
from peftcli.errors import UserError
from peftcli.recipe.schema import DataSource, DataSpec, TaskName

TAKEN = "input_"
"""Stands before the name of a column that is called as a part of the prediction is."""


class InputRows:
    """Reads a file from its first row to its last, as predictions come.

    Args:
        path: the file.
        spec: with which it was prepared.
    """

    def __init__(self, path: str, spec: DataSpec, task: TaskName) -> None:
        self._path, self._spec, self._task = path, spec, task
        self._rows = iter(resolve_source(DataSource(path=path)).rows())
        self._ahead: list[Record] = []
        self._found: RecognisedFormat | None = None
        self._number, self._record = -1, Record(path, 0, {})

    def at(self, number: int) -> Record:
        """Return a row by its number from 0; numbers must not fall.

        Raises:
            UserError: the file became shorter.
        """
        while self._number < number:
            self._record, self._number = self._next(), self._number + 1
        return self._record

    def words(self, record: Record) -> list[str] | None:
        """Return the words of a row whose tags are predicted; None for a row of tokens."""
        if self._found is None:
            while len(self._ahead) < FIRST_ROWS and (row := self._read()) is not None:
                self._ahead.append(row)
            spec = self._spec
            self._found = recognise(
                [record, *self._ahead], self._task, wanted=spec.format, columns=spec.columns, predicting=True
            )
        (example,) = self._found.examples(record)
        return example.tokens if isinstance(example, Tagged) else None

    def _next(self) -> Record:
        row = self._ahead.pop(0) if self._ahead else self._read()
        if row is None:
            remedy = "predict again once nobody writes it"
            raise UserError(f"{self._path} changed while its rows were predicted", suggestion=remedy)
        return row

    def _read(self) -> Record | None:
        return next((row for row in self._rows if isinstance(row, Record)), None)


def beside(values: Mapping[str, Any], line: Mapping[str, Any]) -> dict[str, Any]:
    """Return a line with the columns of its row in front; none of them is lost to a name that the line has, too."""
    kept: dict[str, Any] = {}
    for name, value in values.items():
        if name not in line or value != line[name]:
            kept[free_name(name, {*line, *values} - {name}) if name in line else name] = value
    return {**kept, **line}


def free_name(name: str, taken: Collection[str]) -> str:
    """Return a column's name with `TAKEN` before it, as often as it takes."""
    renamed = TAKEN + name
    return free_name(renamed, taken) if renamed in taken else renamed
