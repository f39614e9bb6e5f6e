"""Read parquet and arrow files batch by batch, and saved `datasets` directories without importing `datasets`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet

from peftcli.data.read.compressed import COMPRESSED, open_bytes
from peftcli.data.read.records import Record
from peftcli.data.read.text_files import Rows
from peftcli.errors import Problem, UserError

BATCH = 1000  # rows turned into Python objects at a time
ClassNames = Mapping[str, Sequence[str]]


def read_parquet(path: Path, name: str) -> Rows:
    """Yield the rows of a parquet file; row numbers count from 1."""
    with _explained(name):
        file = pyarrow.parquet.ParquetFile(_opened(path))
    yield from _records(_checked(file.iter_batches(batch_size=BATCH), name), name)


def read_arrow(path: Path, name: str, class_names: ClassNames | None = None, first: int = 1) -> Rows:
    """Yield the rows of an arrow file, in the streaming or the random-access format.

    Args:
        class_names: column to names, for columns that hold numbers of classes.
        first: number of the first row.
    """
    yield from _records(_checked(_arrow_batches(path, name), name), name, class_names, first)


def read_class_names(directory: Path) -> dict[str, list[str]]:
    """Return column to names of the class columns that a saved data set declares."""
    try:
        info = json.loads((directory / "dataset_info.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(Problem(f"not a saved data set: {error}", file=str(directory))) from error
    out = {}
    for column, feature in (info.get("features") or {}).items():
        inner = feature
        while isinstance(inner, dict) and "feature" in inner:
            inner = inner["feature"]
        if isinstance(inner, dict) and inner.get("_type") == "ClassLabel" and inner.get("names"):
            out[column] = [str(name) for name in inner["names"]]
    return out


def saved_files(directory: Path) -> tuple[Path, ...]:
    """Return the arrow files of a saved data set in the order of its rows."""
    try:
        state = json.loads((directory / "state.json").read_text(encoding="utf-8"))
        return tuple(directory / entry["filename"] for entry in state["_data_files"])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(Problem(f"not a saved data set: {error}", file=str(directory / "state.json"))) from error


def read_many(files: Sequence[Path], title: str, class_names: ClassNames) -> Rows:
    """Yield the rows of several arrow files as one data set, numbered through."""
    number = 1
    for path in files:
        for row in read_arrow(path, title, class_names, number):
            number = row.row + 1
            yield row


def read_dataset(dataset: Any, title: str, class_names: ClassNames) -> Rows:
    """Yield the rows of a data set of the `datasets` library that gives arrow tables."""
    yield from _records(_checked(iter(dataset.iter(batch_size=BATCH)), title), title, class_names)


def _arrow_batches(path: Path, name: str) -> Iterator[pa.RecordBatch]:
    with _explained(name):
        source = _opened(path)
        try:
            batches: Any = pyarrow.ipc.open_stream(source)
        except pa.ArrowInvalid:  # the other of the two formats, which says so in its first bytes
            file = pyarrow.ipc.open_file(_opened(path))
            batches = (file.get_batch(number) for number in range(file.num_record_batches))
    for batch in batches:
        for start in range(0, batch.num_rows, BATCH):
            yield batch.slice(start, BATCH)


def _opened(path: Path) -> Any:
    if path.suffix.lower() in COMPRESSED:
        with open_bytes(path) as handle:
            return pa.BufferReader(handle.read())
    return pa.memory_map(str(path))


def _checked(batches: Iterator[pa.RecordBatch], name: str) -> Iterator[pa.RecordBatch]:
    """Yield batches; damage that shows only while reading is a `UserError` too."""
    while True:
        with _explained(name):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


def _records(
    batches: Iterator[pa.RecordBatch], name: str, class_names: ClassNames | None = None, first: int = 1
) -> Rows:
    number = first
    for batch in batches:
        for values in batch.to_pylist():
            for column, names in (class_names or {}).items():
                if column in values:
                    values[column] = _named(values[column], names)
            yield Record(name, number, values)
            number += 1


def _named(value: Any, names: Sequence[str]) -> Any:
    """Return class numbers, alone or in lists, as names; -1, which means unlabelled in test splits, becomes None."""
    if isinstance(value, list):
        return [_named(item, names) for item in value]
    if isinstance(value, int) and 0 <= value < len(names):
        return names[value]
    return None if value == -1 else value


class _explained:
    """Turns what pyarrow says of a damaged file into a `UserError`."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, pa.ArrowException | OSError):
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(Problem(f"cannot be read: {first}", file=self._name)) from error
