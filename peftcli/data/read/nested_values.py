"""Values inside the cells of a row: dotted paths into objects and lists, and cells that hold one of them as text."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

MISSING = object()
"""What a path that leads nowhere gives; null is a value."""

DEEPEST = 500
"""Lists and objects inside each other in one row; Python's own JSON functions stop below 1,000."""


def is_nothing(value: Any) -> bool:
    """Whether a cell holds nothing: null, or NaN, as tables of numbers write what is missing."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def is_infinite(value: Any) -> bool:
    """Whether a cell holds an infinite number: 1e400, or the `Infinity` that other programs write into JSON."""
    return isinstance(value, float) and math.isinf(value)


def too_deep(value: Any, text: str) -> bool:
    """Whether lists and objects are nested more than `DEEPEST` levels deep in a value.

    Args:
        text: the JSON that it was read from.
    """
    if text.count("[") + text.count("{") <= DEEPEST:
        return False
    level = [value]
    for _ in range(DEEPEST):
        inner = [list(one.values()) if isinstance(one, dict) else one for one in level if isinstance(one, dict | list)]
        level = [one for values in inner for one in values if isinstance(one, dict | list)]
        if not level:
            return False
    return True


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
        return found if isinstance(found, list | dict) and not too_deep(found, bare) else value
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
