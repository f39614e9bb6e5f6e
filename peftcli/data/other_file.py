"""What of a recipe's `data` block counts when a run reads another file: how its rows are read, and how long they are.

Which rows the training took, and how they were mixed, split and packed, says nothing about another file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from peftcli.data.read.records import Record
from peftcli.data.read.sources import resolve_source
from peftcli.data.recognition.format_table import BY_NAME, FORMATS
from peftcli.data.store.data_report import Counts
from peftcli.errors import UserError
from peftcli.recipe.schema import DataSource, DataSpec

CHOICE_OF_ROWS: Mapping[str, Any] = {
    "path": None,
    "datasets": None,
    "config": None,
    "split": None,
    "val_set_size": 0.0,
    "split_rule": 2,
    "validation": None,
    "stratify": None,
    "group_by": None,
    "packing": False,
    "max_fully_masked": 1.0,
    "streaming": False,
    "max_rows": None,
    "max_eval_rows": None,
    "split_seed": None,
}
"""Keys of `data` that choose or mix the rows of a training, and the values that they have for another file."""

FIRST_ROWS = 20
"""Rows whose columns tell which of several sources a file resembles."""


def reading_spec(spec: DataSpec, path: str, trained_format: str | None = None) -> DataSpec:
    """Return the `data` block with which a run reads another file.

    Args:
        spec: the recipe's.
        path: the file. It is read as `data` says, or, where the columns of `data` are not in it, as the first source
            with a `format` or `columns` of its own whose input columns are. A column may also have our name instead of
            the one that the recipe gives it.
        trained_format: that of the training rows. A recipe with `data.template` and format `auto` recognises its format
            by the answers, which another file need not have.
    """
    changes = {**CHOICE_OF_ROWS, "path": path}
    found = _best(list(_readings(spec)), path)
    changes |= {"format": found.format, "columns": _columns_or_our_names(found.columns, path)}
    if spec.template is not None and found.format == "auto" and trained_format:
        changes["format"] = trained_format
    return spec.model_copy(update=changes)


def _readings(spec: DataSpec) -> Iterator[DataSpec]:
    """Yield the ways in which the recipe reads rows, each once: that of `data`, then those of single sources."""
    validation = spec.validation if isinstance(spec.validation, list) else [spec.validation]
    sources = [*(spec.datasets or ()), *(source for source in validation if source is not None)]
    seen: list[DataSpec] = []
    for source in [DataSource(path="-"), *sources]:
        columns = spec.columns if source.columns is None else source.columns
        one = DataSpec(format=source.format or spec.format, columns=columns)
        if one not in seen:
            seen.append(one)
            yield one


def _best(readings: list[DataSpec], path: str) -> DataSpec:
    """Return the reading with all of its input columns in the file, and most others; one alone is not checked."""
    if len(readings) == 1:
        return readings[0]
    present = columns_of(path)
    formats = [*FORMATS, *(BY_NAME[one.format] for one in readings if one.format != "auto")]
    learnt = {column.name for known in formats for column in known.columns if column.target}

    def found(reading: DataSpec) -> int:
        columns = reading.columns.items()
        if any(theirs not in present for ours, theirs in columns if ours not in learnt):
            return 0
        return sum(theirs in present for _, theirs in columns)

    return max(readings, key=found)  # the first of equal ones


def _columns_or_our_names(columns: Mapping[str, str], path: str) -> dict[str, str]:
    """Return the mapping without the columns that the file lacks and has under our own name."""
    present = columns_of(path) if columns else set()
    return {
        ours: theirs
        for ours, theirs in columns.items()
        if ours not in present or theirs in present or theirs.split(".")[0] in present
    }


def columns_of(path: str) -> set[str]:
    """Return the columns of a file's first rows; none where it cannot be read, which its preparation then says."""
    try:
        rows = islice(resolve_source(DataSource(path=path)).rows(), FIRST_ROWS)
        return {name for row in rows if isinstance(row, Record) for name in row.values}
    except UserError:
        return set()


def said(counts: Counts, max_length: int, *, split: bool = False, tagged: bool = False) -> list[str]:
    """Return a sentence on each kind of row that is not evaluated whole.

    Args:
        max_length: tokens of a row at most.
        split: longer rows are split instead of cut.
        tagged: each word is predicted, so that a cut row has fewer of them.
    """
    cut = "cut: words behind that are in no metric" if tagged else "cut"
    became = {
        f"longer than max_length {max_length} and {'split' if split else cut}": counts.truncated,
        f"longer than max_length {max_length} and left out": counts.dropped,
        "without anything to predict and left out": counts.fully_masked,
        "broken and left out": counts.skipped,
    }
    verb = {True: "is", False: "are"}
    return [f"{count:,} of {counts.rows:,} rows {verb[count == 1]} {what}" for what, count in became.items() if count]
