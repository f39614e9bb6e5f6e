"""Read parquet and arrow files batch by batch, and saved `datasets` directories without importing `datasets`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
from pydantic import Field

from peftcli.data.read.compressed import COMPRESSED, read_bytes
from peftcli.data.read.records import BadRow, Record
from peftcli.data.read.text_files import Rows
from peftcli.errors import Problem, UserError
from peftcli.shown_text import first_line
from peftcli.typed_record import read_object, read_record

BATCH = 1000  # rows turned into Python objects at a time
DECODED = 16  # rows of a parquet file decoded at a time, each with a copy of a value that the file may hold once
IN_MEMORY = 2**29  # bytes of a batch as Python objects
LARGEST = 2 * 2**30  # bytes of an arrow or parquet file inside gzip and the like, which is in memory as a whole
ClassNames = Mapping[str, Any]
"""Column to the names of its classes, or to a mapping of the same kind where they are inside its objects."""

_NOT_SAVED = "a saved data set is a directory that `save_to_disk` of the library `datasets` wrote"
_UNREADABLE = (
    *(pa.ArrowException, OSError, ValueError, ArithmeticError, LookupError),
    *(TypeError, AttributeError, SystemError, RecursionError),
)
"""What pyarrow, and Python's values in place of its, raise for a file that is damaged or not what it says."""


def read_parquet(path: Path, name: str) -> Rows:
    """Yield the rows of a parquet file; row numbers count from 1."""
    with _explained(name):
        # the sizes of its columns are not asked for: where their metadata is damaged, pyarrow ends the process
        batches = pyarrow.parquet.ParquetFile(_opened(path, name)).iter_batches(batch_size=DECODED)
    yield from _records(_checked(batches, name), name)


def read_arrow(path: Path, name: str, class_names: ClassNames | None = None, first: int = 1) -> Rows:
    """Yield the rows of an arrow file, in the streaming or the random-access format.

    Args:
        class_names: column to names, for columns that hold numbers of classes.
        first: number of the first row.
    """
    yield from _records(_arrow_batches(path, name), name, class_names, first)


def read_class_names(directory: Path) -> dict[str, Any]:
    """Return column to names of the class columns that a saved data set declares; see `class_columns`."""
    info = read_object(directory / "dataset_info.json", suggestion=_NOT_SAVED)
    try:
        return class_columns(info.get("features") or {})
    except _UNREADABLE as error:
        text = f"features are not those of a data set: {error}"
        raise UserError(Problem(text, file=str(directory / "dataset_info.json"), suggestion=_NOT_SAVED)) from error


def saved_files(directory: Path) -> tuple[Path, ...]:
    """Return the arrow files of a saved data set in the order of its rows."""
    path = directory / "state.json"
    state = read_record(_SavedState, path, suggestion=_NOT_SAVED)
    names = [entry.filename for entry in state.files]
    for name in names:
        if Path(name).name != name or not (directory / name).is_file():
            text = f"_data_files names {name!r}, which is no file beside it"
            raise UserError(Problem(text, file=str(path), suggestion=_NOT_SAVED))
    return tuple(directory / name for name in names)


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
        source = _opened(path, name)
        try:
            batches: Any = pyarrow.ipc.open_stream(source)
        except pa.ArrowInvalid:  # the other of the two formats, which says so in its first bytes
            source.seek(0)
            file = pyarrow.ipc.open_file(source)
            batches = (file.get_batch(number) for number in range(file.num_record_batches))
    for batch in _checked(batches, name):
        for start in range(0, batch.num_rows, BATCH):
            yield batch.slice(start, BATCH)


def _opened(path: Path, name: str) -> Any:
    """Return a file of pyarrow's. It is not mapped: a damaged offset would end the process by SIGBUS."""
    if path.suffix.lower() in COMPRESSED:
        return pa.BufferReader(read_bytes(path, name, LARGEST))
    return pa.OSFile(str(path))


def _checked(batches: Iterator[pa.RecordBatch], name: str) -> Iterator[pa.RecordBatch]:
    """Yield batches, every offset and text of which is valid; damage that shows only while reading is a `UserError`."""
    while True:
        with _explained(name):
            batch = next(batches, None)
            if batch is not None:
                batch.validate(full=True)  # pyarrow trusts them, and would read any memory
        if batch is None:
            return
        yield batch


def _records(batches: Iterator[pa.RecordBatch], name: str, names: ClassNames | None = None, first: int = 1) -> Rows:
    number = first
    for batch in batches:
        _refuse_twice(batch.schema.names, name)
        with _explained(name):
            nested = [field.name for field in batch.schema if _holds_structs(field.type)]
            classes = {**_class_names_of((batch.schema.metadata or {}).get(b"huggingface", b"{}")), **(names or {})}
        for values in _python_rows(batch, name):
            if isinstance(values, Exception):
                yield BadRow(name, number, f"a value cannot be read: {values}", expected="values that Python has")
                number += 1
                continue
            for column in nested:
                values[column] = _without_nulls(values[column])
            for column, known in classes.items():
                if column in values:
                    values[column] = _named(values[column], known)
            yield Record(name, number, values)
            number += 1


def _refuse_twice(columns: Sequence[str], name: str) -> None:
    """Refuse a table with two columns of one name, of which a row in Python keeps the last one alone.

    Raises:
        UserError: names them.
    """
    if twice := sorted(column for column, times in Counter(columns).items() if times > 1):
        text = f"there are two columns of the name {', '.join(twice)}"
        raise UserError(Problem(text, file=name, suggestion="give every column a name of its own"))


def _python_rows(batch: pa.RecordBatch, name: str) -> Iterator[dict[str, Any] | Exception]:
    """Yield the rows of a batch, or why one is no row: a date that Python does not have, say.

    Raises:
        UserError: there is not enough memory for a row.
    """
    try:
        if _size_in_python(batch) <= IN_MEMORY:
            yield from batch.to_pylist(maps_as_pydicts="lossy")
            return
    except _UNREADABLE:  # before the first one
        pass
    for place in range(batch.num_rows):
        try:
            yield from batch.slice(place, 1).to_pylist(maps_as_pydicts="lossy")
        except _UNREADABLE as error:
            yield error
        except MemoryError as error:
            text = "there is not enough memory for one of its rows"
            raise UserError(Problem(text, file=name, suggestion="divide long rows into several")) from error


def _size_in_python(batch: pa.RecordBatch) -> int:
    """Return the bytes of a batch whose rows each hold values of their own, where Arrow keeps equal ones once."""
    return sum(
        column.nbytes if not pa.types.is_dictionary(column.type) else column.dictionary.nbytes * batch.num_rows
        for column in batch.columns
    )


def _holds_structs(kind: pa.DataType) -> bool:
    """Whether the values of a type are objects, or lists of them: these have the keys of all rows in every row."""
    if pa.types.is_nested(kind):
        return pa.types.is_struct(kind) or any(
            _holds_structs(kind.field(place).type) for place in range(kind.num_fields)
        )
    return False


def _without_nulls(value: Any) -> Any:
    """Return a value without the keys that are null: Arrow gives each object the keys of all rows."""
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_without_nulls(inner) for inner in value]
    return value


@cache
def _class_names_of(text: bytes) -> dict[str, Any]:
    """Return column to names from what `datasets` writes into the metadata of parquet and arrow files."""
    try:
        return class_columns(json.loads(text)["info"]["features"])
    except _UNREADABLE:  # somebody else's key of that name
        return {}


def class_columns(features: Mapping[str, Any]) -> dict[str, Any]:
    """Return for each column with numbers of named classes their names, or by key where they are inside objects."""
    return {column: found for column, feature in features.items() if (found := _class_names(feature))}


def _class_names(feature: Any) -> Any:
    while True:
        if isinstance(feature, list) and len(feature) == 1:
            feature = feature[0]
        elif isinstance(feature, dict) and isinstance(feature.get("_type"), str) and "feature" in feature:
            feature = feature["feature"]
        else:
            break
    if not isinstance(feature, dict):
        return None
    if feature.get("_type") == "ClassLabel":
        return [str(name) for name in feature.get("names") or ()]
    return None if "_type" in feature else class_columns(feature)


def _named(value: Any, names: Any) -> Any:
    """Return class numbers, alone, in lists or in objects, as names.

    -1, which means unlabelled in test splits, becomes None.
    """
    if isinstance(value, list):
        return [_named(item, names) for item in value]
    if isinstance(names, Mapping):
        if not isinstance(value, dict):
            return value
        return {key: _named(inner, names[key]) if key in names else inner for key, inner in value.items()}
    if isinstance(value, int) and 0 <= value < len(names):
        return names[value]
    return None if value == -1 else value


@dataclass(frozen=True)
class _SavedFile:
    filename: str


@dataclass(frozen=True)
class _SavedState:
    files: Annotated[list[_SavedFile], Field(alias="_data_files")]


class _explained:
    """Turns what pyarrow says of a damaged file into a `UserError`."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (*_UNREADABLE, MemoryError)):
            raise UserError(Problem(f"cannot be read: {first_line(error)}", file=self._name)) from error
