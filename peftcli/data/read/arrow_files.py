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
ClassNames = Mapping[str, Any]
"""Column to the names of its classes, or to a mapping of the same kind where they are inside its objects."""


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


def read_class_names(directory: Path) -> dict[str, Any]:
    """Return column to names of the class columns that a saved data set declares; see `class_columns`."""
    try:
        info = json.loads((directory / "dataset_info.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(Problem(f"not a saved data set: {error}", file=str(directory))) from error
    return class_columns(info.get("features") or {})


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


def _records(batches: Iterator[pa.RecordBatch], name: str, names: ClassNames | None = None, first: int = 1) -> Rows:
    number = first
    for batch in batches:
        nested = [field.name for field in batch.schema if _holds_structs(field.type)]
        classes = {**_class_names_of(batch.schema.metadata), **(names or {})}
        for values in batch.to_pylist(maps_as_pydicts="lossy"):
            for column in nested:
                values[column] = _without_nulls(values[column])
            for column, known in classes.items():
                if column in values:
                    values[column] = _named(values[column], known)
            yield Record(name, number, values)
            number += 1


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


def _class_names_of(metadata: Mapping[bytes, bytes] | None) -> dict[str, Any]:
    """Return column to names from what `datasets` writes into the metadata of parquet and arrow files."""
    try:
        info = json.loads((metadata or {}).get(b"huggingface", b"{}"))
        return class_columns(info["info"]["features"])
    except (ValueError, KeyError, TypeError, AttributeError):  # somebody else's key of that name
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
