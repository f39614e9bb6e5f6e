"""A point of a sweep as changes to the recipe: the `key=value` texts that `peft train` takes."""

from __future__ import annotations

import hashlib
import json
import re

from peftcli.studies.sweep.space.search_space import Point

METHOD_NAME = "method.name"


def overrides_of(point: Point, own_method: str) -> tuple[str, ...]:
    """Return the changes of a point.

    Where the point chooses another method than the recipe's, the whole block is replaced: the keys of one method are
    wrong for another, which starts from its own defaults.

    Args:
        point: values by key.
        own_method: the name of the recipe's method.
    """
    values = dict(point)
    first: list[str] = []
    if METHOD_NAME in values and values[METHOD_NAME] != own_method:
        first = [f"method={json.dumps({'name': values[METHOD_NAME]})}"]
    values.pop(METHOD_NAME, None)
    return (*first, *(f"{key}={json.dumps(value)}" for key, value in values.items()))


def point_name(point: Point) -> str:
    """Return a short name of a point for files: readable, and with a hash that tells all points apart."""
    written = json.dumps(point, sort_keys=True)
    words = [f"{key.rpartition('.')[2]}={_plain(value)}" for key, value in point.items()]
    readable = re.sub(r"[^A-Za-z0-9_.=+-]+", "_", "-".join(words))[:60].strip("_")
    return f"{readable}-{hashlib.sha256(written.encode()).hexdigest()[:8]}"


def point_text(point: Point) -> str:
    """Return a point for people: `method.r = 8, training.learning_rate = 0.001`."""
    return ", ".join(f"{key} = {_plain(value)}" for key, value in point.items())


def _plain(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)
