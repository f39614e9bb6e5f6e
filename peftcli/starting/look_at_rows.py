"""Look at the first rows of some data: their format, their columns, and the task that they are for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from peftcli.data.read.records import BadRow, Record
from peftcli.data.read.sources import resolve_source
from peftcli.data.recognition.recognise import recognise
from peftcli.data.recognition.row_format import RecognisedFormat
from peftcli.errors import Problem, UserError
from peftcli.names import NAMES
from peftcli.recipe.schema import DataSource

_FIRST_ROWS = 50
_GENERAL = ("text", "pairs")
"""Rows of tasks that any text is: what the rows are for is another task, where one fits."""


@dataclass(frozen=True)
class Rows:
    """What the first rows of some data are.

    Args:
        path: as the user gave it.
        tasks: those whose rows these can be, with the format for each; the likeliest first.
        columns: of the file.
    """

    path: str
    tasks: dict[str, RecognisedFormat]
    columns: tuple[str, ...]


def look_at_rows(path: str) -> Rows:
    """Return what the first rows of a file, a directory or a data set of the hub are.

    Raises:
        UserError: nothing is there, it cannot be read, or no format fits.
    """
    source = resolve_source(DataSource(path=path), purpose="train")
    rows = list(islice(source.rows(), _FIRST_ROWS))
    records = [row for row in rows if isinstance(row, Record)]
    if not records:
        raise UserError(_no_rows(path, rows))
    kind = source.kind if source.kind == "folders" else None
    tasks: dict[str, RecognisedFormat] = {}
    refused: UserError | None = None
    for name in sorted(NAMES.tasks, key=lambda name: NAMES.tasks[name].rows in _GENERAL):
        try:
            tasks[name] = recognise(records, name, source=path, of_source=kind)
        except UserError as error:
            refused = error
    if not tasks and refused is not None:
        raise refused
    return Rows(path, tasks, _columns(records))


def _no_rows(path: str, rows: Sequence[Record | BadRow]) -> Problem:
    """Return why there is no row: the file is empty, or what is wrong with its first one."""
    remedy = "docs/data.md shows the formats of rows"
    for row in rows:
        if isinstance(row, BadRow):
            return Problem(
                f"no row can be read; the first error: {row.message}", row.source, row.row, suggestion=remedy
            )
    return Problem(f"{path} holds no rows", suggestion=remedy)


def _columns(records: Sequence[Record]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for record in records for name in record.values))


def default_output(path: str) -> str:
    """Return the directory of the run for some data: runs/ and the name of the file."""
    stem = re.sub(r"[*?\[\]]+", "", Path(path).name.split(".")[0]).strip(" -_")
    return f"runs/{stem or 'run'}"
