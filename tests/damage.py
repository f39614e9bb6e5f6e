"""What can happen to a record: each of its keys missing, or with a value of another kind."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

DEEP = "[" * 2_000 + "]" * 2_000
OTHERS = ("null", "[]", '["x"]', "{}", '"x"', "-1", "0", "1.5", "true", str(10**30), DEEP)


def changed(data: Any, others: Sequence[str] = OTHERS) -> Iterator[tuple[str, str]]:
    """Yield (the last name on the way to a value, the text of the whole) for each value and each change of it.

    Args:
        data: plain JSON data; of a list only the first element is changed, of a nested object the first six keys.
        others: JSON texts to put in the place of a value.
    """
    for path in _paths(data):
        last = next(str(part) for part in reversed(path) if isinstance(part, str))
        for other in (None, *others):
            yield last, _with(data, path, other)


def _paths(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    parts = (
        list(data.items()) if isinstance(data, dict) else list(enumerate(data[:1])) if isinstance(data, list) else []
    )
    parts = parts if len(path) < 2 else parts[:6]
    for key, value in parts:
        if (*path, key) != (0,):
            yield (*path, key)
        yield from _paths(value, (*path, key))


def _with(data: Any, path: tuple[Any, ...], other: str | None) -> str:
    """Return the text of `data` with another value at a path; without that value for None."""
    head, *rest = path
    parts = dict(data) if isinstance(data, dict) else dict(enumerate(data))
    texts = {key: json.dumps(value) for key, value in parts.items()}
    if rest:
        texts[head] = _with(parts[head], tuple(rest), other)
    elif other is None:
        del texts[head]
    else:
        texts[head] = other
    if isinstance(data, dict):
        return "{" + ", ".join(f"{json.dumps(key)}: {text}" for key, text in texts.items()) + "}"
    return "[" + ", ".join(texts.values()) + "]"
