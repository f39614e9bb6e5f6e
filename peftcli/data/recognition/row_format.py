"""What a file in `formats/` declares about its format, and a source whose format was recognised."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from peftcli.data.read.nested_values import is_infinite, is_nothing, with_paths
from peftcli.data.read.records import Record, RowError, in_words
from peftcli.data.recognition.examples import Example
from peftcli.data.recognition.row_template import RowTemplate
from peftcli.tasks.task_info import RowKind

MakeExamples = Callable[["RecognisedFormat", Mapping[str, Any]], list[Example]]
"""From the values of a row to its examples: one, except where a row nests several. It raises `RowError`."""


def any_values(_columns: Mapping[str, str], _records: Sequence[Record]) -> bool:
    """Return True: the names of the columns say enough."""
    return True


@dataclass(frozen=True)
class Column:
    """One column of a format.

    Args:
        name: our name, which `data.columns` uses.
        synonyms: other names under which files have it; the first one found is taken.
        required: whether it must be there.
        target: whether it holds what the model learns, which may be absent when predicting.
        instead: another column that may stand in its place.
    """

    name: str
    synonyms: tuple[str, ...] = ()
    required: bool = True
    target: bool = False
    instead: str | None = None


@dataclass(frozen=True)
class RowFormat:
    """A shape of rows.

    Args:
        name: as `data.format` has it.
        columns: in the order in which they look for their names.
        expected: one line that shows the shape, for messages.
        makes: how a row becomes examples, by the kind of row that a task asks for; the format serves those tasks.
        template_column: the column that `data.template` stands in for; None where there is no text to make.
        looks_right: whether the values of the first rows fit; the arguments are our name to the file's column, and
            the rows. Needed where several formats have columns of the same names.
        has_columns: whether files have its columns; else the source itself decides (class folders).
        loss: the `training.loss_type` that its rows need; None where they need none.
        rows: example rows for the documentation, which a test prepares.
        about: what the documentation says below them.
    """

    name: str
    columns: tuple[Column, ...]
    expected: str
    makes: Mapping[RowKind, MakeExamples]
    template_column: str | None = None
    looks_right: Callable[[Mapping[str, str], Sequence[Record]], bool] = any_values
    has_columns: bool = True
    loss: str | None = None
    rows: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)
    about: str = field(default="", repr=False)

    def column(self, name: str) -> Column | None:
        """Return the column of that name of ours."""
        return next((column for column in self.columns if column.name == name), None)


@dataclass(frozen=True)
class RecognisedFormat:
    """The format of one source, with its columns found: how its rows become examples.

    Args:
        format: the shape of the rows.
        kind: what the task makes of a row.
        columns: our name to the file's column.
        template: text made of columns, in place of the prompt (or of the text).
        evidence: why this format, for the user.
        predicting: what would be learnt may be absent.
    """

    format: RowFormat
    kind: RowKind
    columns: Mapping[str, str]
    template: RowTemplate | None = None
    evidence: str = ""
    predicting: bool = False

    @property
    def target_column(self) -> str | None:
        """The file's column that holds what is learnt, None where it has none."""
        return next((self.columns.get(column.name) for column in self.format.columns if column.target), None)

    def examples(self, record: Record) -> list[Example]:
        """Return the examples of a row: one, except where a row nests several.

        Raises:
            RowError: the row does not have the shape of the format.
        """
        return self.format.makes[self.kind](self, with_paths(record.values, self.paths))

    @property
    def paths(self) -> tuple[str, ...]:
        """The columns, or dotted paths into them, from which examples are made."""
        mapped = tuple(
            column for ours, column in self.columns.items() if not self.template or ours != self.format.template_column
        )
        return (*mapped, *(self.template.columns if self.template else ()))

    def unused_columns(self, record: Record) -> list[str]:
        """Return the columns of a row that hold something and from which no example is made."""
        used = {path if path in record.values else path.split(".")[0] for path in self.paths}
        return [name for name, value in record.values.items() if name not in used and not _is_empty(value)]

    def wrong(self, message: str) -> RowError:
        """Return an error of a row that shows what the format expects."""
        return RowError(message, self.format.expected)

    def cell(self, values: Mapping[str, Any], name: str) -> Any:
        """Return the value in a column of ours, None where the row or the source lacks it."""
        return cell(values, self.columns.get(name))

    def text(self, values: Mapping[str, Any], name: str, *, empty: bool = False) -> str:
        """Return a column's text; numbers become text.

        Raises:
            RowError: it is absent, null, NaN, infinite, a list or an object, or (unless `empty`) blank.
        """
        column = self._present(values, name)
        value = values[column]
        if isinstance(value, str):
            if not empty and not value.strip():
                raise self.wrong(f"the column {column!r} is empty")
            return value
        if is_nothing(value):
            raise self.wrong(f"the column {column!r} is {'null' if value is None else 'NaN'}")
        if is_infinite(value):
            raise self.wrong(f"the column {column!r} is an infinite number, not text")
        if isinstance(value, int | float) and not isinstance(value, bool):
            return str(value)
        raise self.wrong(f"the column {column!r} holds {in_words(value)}, not text")

    def prompt(self, values: Mapping[str, Any], *, empty: bool = False) -> str:
        """Return the text that the recipe's template makes, or that of the column that it would stand in for."""
        if self.template:
            return self.template.render(values)
        assert self.format.template_column is not None  # a format that calls this names the column
        return self.text(values, self.format.template_column, empty=empty)

    def target(self, values: Mapping[str, Any], name: str) -> str | None:
        """Return the text that is learnt; None when predicting (there it may be absent, and is not looked at)."""
        return None if self.predicting else self.text(values, name)

    def label(self, values: Mapping[str, Any], name: str) -> Any:
        """Return a raw label: one value, or a list.

        Raises:
            RowError: it is absent, null, NaN, blank, or an object.
        """
        column = self._present(values, name)
        value = values[column]
        if is_nothing(value):
            raise self.wrong(f"the label in {column!r} is {'null' if value is None else 'NaN'}")
        if isinstance(value, str) and not value.strip():
            raise self.wrong(f"the label in {column!r} is empty")
        if isinstance(value, dict):
            raise self.wrong(f"the label in {column!r} is an object")
        return value

    def _present(self, values: Mapping[str, Any], name: str) -> str:
        """Return the file's name of a column that a row has."""
        column = self.columns.get(name)
        if column is None or column not in values:
            raise self.wrong(f"no column {column or name!r}; the row has {', '.join(values) or 'none'}")
        return column


def cell(values: Mapping[str, Any], column: str | None) -> Any:
    """Return a value of a row, None when the column is absent."""
    return None if column is None else values.get(column)


def _is_empty(value: Any) -> bool:
    return is_nothing(value) or (isinstance(value, str | list | dict) and not value)
