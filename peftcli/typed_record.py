"""Read a JSON file into plain data or a typed record, or say what is wrong with it.

A file between two commands can be cut, edited or damaged. Whoever reads one gets a `UserError` that names the file and
the key: to show, or to catch where the way on does not need the file.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from peftcli.errors import Problem, UserError

LARGEST = 64 * 2**20
"""Bytes of a JSON file that is a record. Data files are read in pieces, by `data/read`."""

_Record = TypeVar("_Record")
_ADAPTERS: dict[Any, TypeAdapter[Any]] = {}


def read_json(path: Path, *, suggestion: str | None = None) -> Any:
    """Return what a JSON file holds.

    Args:
        path: the file.
        suggestion: the remedy, for the message.

    Raises:
        UserError: it cannot be read, is larger than `LARGEST`, or is no JSON; names the file, and the line if known.
    """
    line = None
    try:
        found = path.stat()
        if stat.S_ISREG(found.st_mode) and found.st_size <= LARGEST:
            return json.loads(path.read_text(encoding="utf-8"))
        reason = f"it has {found.st_size:,} bytes; a file of this kind has at most {LARGEST:,}"
        if not stat.S_ISREG(found.st_mode):  # a pipe or a device could be read for ever
            reason = "cannot be read: it is a directory, a pipe or a device"
    except FileNotFoundError:
        reason = "there is no such file"
    except OSError as error:
        reason = f"cannot be read: {error.strerror or error}"
    except UnicodeDecodeError as error:
        reason = f"is damaged: byte {error.start} is not UTF-8"
    except json.JSONDecodeError as error:
        reason, line = f"is not JSON: {error.msg}, column {error.colno}", error.lineno
    except RecursionError:
        reason = "is not readable: its values are nested too deeply"
    except ValueError as error:  # a number of too many digits
        reason = f"is not readable: {error}"
    raise UserError(Problem(reason, file=str(path), line=line, suggestion=suggestion))


def read_object(path: Path, *, suggestion: str | None = None) -> dict[str, Any]:
    """Return the JSON object that a file holds.

    Raises:
        UserError: as `read_json`, or it holds something else.
    """
    data = read_json(path, suggestion=suggestion)
    if not isinstance(data, dict):
        reason = f"holds a JSON {_json_kind(data)}; expected an object"
        raise UserError(Problem(reason, file=str(path), suggestion=suggestion))
    return data


def record_of(
    kind: type[_Record], data: Mapping[str, Any], path: Path, *, key: str = "", suggestion: str | None = None
) -> _Record:
    """Return `data` as a record: a dataclass, a TypedDict, or another type that pydantic knows.

    Values have the declared types (a whole number is fine where a float is declared; text is no number). Keys that the
    record does not have are passed over: a later version may add some.

    Args:
        kind: the record's class.
        data: from `read_object`, or a part of it.
        path: where it comes from, for the message.
        key: the key of `data` in the file, if it is a part of it.
        suggestion: the remedy, for the message.

    Raises:
        UserError: keys are missing or have values of another kind; names the file, and each key with what was expected.
    """
    try:
        # as JSON: strict about numbers and text, and a list is what JSON has for a tuple
        found: _Record = _adapter(kind).validate_json(json.dumps(data), strict=True)
        return found
    except RecursionError:  # a reader of JSON may take deeper values than a writer
        raise UserError(Problem("its values are nested too deeply", str(path), suggestion=suggestion)) from None
    except ValidationError as error:
        problems = [
            Problem(_lower(each["msg"]), file=str(path), key=_dotted(key, each["loc"]), suggestion=suggestion)
            for each in error.errors(include_url=False, include_context=False)
        ]
        raise UserError(problems) from None


def _adapter(kind: Any) -> TypeAdapter[Any]:
    """Return what checks a kind of record: to make it takes milliseconds, and lists of runs read hundreds."""
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]


def read_record(kind: type[_Record], path: Path, *, suggestion: str | None = None) -> _Record:
    """Return what a JSON file holds as a record: `read_object`, then `record_of`."""
    return record_of(kind, read_object(path, suggestion=suggestion), path, suggestion=suggestion)


def _dotted(key: str, location: tuple[int | str, ...]) -> str:
    return ".".join([*([key] if key else []), *map(str, location)])


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]


def _json_kind(value: Any) -> str:
    kinds = ((bool, "boolean"), (int, "number"), (float, "number"), (str, "string"), (list, "array"))
    return next((name for kind, name in kinds if isinstance(value, kind)), "null")
