"""Values inside the cells of a row: dotted paths into objects and lists, and cells that hold one of them as text."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Mapping
from typing import Any

MISSING = object()
"""What a path that leads nowhere gives; null is a value."""


def structure(value: Any) -> Any:
    """Return the list or object that a text holds as JSON, or as Python writes it; any other value as it is."""
    if not isinstance(value, str):
        return value
    bare = value.strip()
    if (bare[:1], bare[-1:]) not in (("[", "]"), ("{", "}")):
        return value
    for parse in (json.loads, ast.literal_eval):
        try:
            found = parse(bare)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        return found if isinstance(found, list | dict) else value
    return value


def value_at(values: Mapping[str, Any], path: str) -> Any:
    """Return the value of a column, or at a dotted path such as `answers.text.0`; `MISSING` where there is none.

    A column whose own name has the dots is taken first.
    """
    if path in values:
        return values[path]
    inner: Any = values
    for part in path.split("."):
        inner = structure(inner)
        if isinstance(inner, Mapping) and part in inner:
            inner = inner[part]
        elif isinstance(inner, list) and part.isdecimal() and int(part) < len(inner):
            inner = inner[int(part)]
        else:
            return MISSING
    return inner


def with_paths(values: Mapping[str, Any], paths: Iterable[str]) -> Mapping[str, Any]:
    """Return a row with the values at some dotted paths beside its columns, under the paths as their names."""
    found = {path: value_at(values, path) for path in paths if path not in values}
    found = {path: value for path, value in found.items() if value is not MISSING}
    return {**values, **found} if found else values
