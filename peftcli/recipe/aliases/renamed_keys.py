"""Keys of recipes and adapters that had other names in earlier versions of peftcli.

A stored recipe contains every key, also those left at their defaults, so that each renamed key is in every older run.
Runs and adapters are read with this table. In a recipe that somebody writes an old name is an error with a suggestion.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from peftcli.recipe.yaml.value_tree import Tree, dotted
from peftcli.recipe.yaml.yaml_lines import Key, Remark


def _same(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class Change:
    """A key that was renamed or removed.

    Args:
        version: the first version with the change.
        old: dotted path; within the method's block if `method` is given.
        new: the present path in the same block; None if the key was removed.
        method: the method that has the hyper-parameter, alone or as a part of a composition.
        value: makes the new value from the old one.
        harmless: values of a removed key that can be ignored, such as its default.
        remedy: what to do if a removed key has any other value.
        absent: for a key that is new (old and new are the same path): what versions without it did.
    """

    version: str
    old: str
    new: str | None
    method: str | None = None
    value: Callable[[Any], Any] = _same
    harmless: tuple[Any, ...] = ()
    remedy: str = ""
    absent: Any = None


CHANGES: tuple[Change, ...] = (
    Change(
        "0.1.0",
        "training.group_by_length",
        "training.train_sampling_strategy",
        value=lambda grouped: "group_by_length" if grouped else "random",
    ),
    Change("0.1.0", "data.split_rule", "data.split_rule", absent=1),
)
"""In the order of the versions."""


@dataclass(frozen=True)
class Gone:
    """A stored value of a removed key that cannot be ignored."""

    key: Key
    message: str
    remedy: str


def upgrade_(data: dict[str, Any], changes: Sequence[Change]) -> tuple[list[tuple[Key, Key]], list[Gone]]:
    """Rename the old keys of a stored recipe, in place.

    Args:
        data: the recipe's top level.

    Returns:
        The renamed keys as (old, new), and the removed ones that cannot be ignored.
    """
    moved: list[tuple[Key, Key]] = []
    gone: list[Gone] = []
    for change in changes:
        for block, place in list(_blocks(data, change.method)):
            *parents, last = change.old.split(".")
            parent = _mapping(block, parents)
            if parent is None or last not in parent:
                if parent is not None and change.absent is not None:
                    parent[last] = change.absent
                continue
            old, value = (*place, *parents, last), parent.pop(last)
            if change.new is not None:
                _put(block, change.new.split("."), change.value(value))
                moved.append((old, (*place, *change.new.split("."))))
            elif value not in change.harmless:
                message = f"{dotted(old)} = {value!r}: this key was removed in peftcli {change.version}"
                gone.append(Gone(old, message, change.remedy or "use the version of peftcli that wrote it"))
    return moved, gone


def upgrade_tree_(tree: Tree, changes: Sequence[Change]) -> list[Remark]:
    """Rename the old keys of a parsed recipe and of its lines, in place; return a remark for each removed one."""
    moved, gone = upgrade_(tree.data, changes)
    tables: tuple[dict[Key, Any], ...] = (tree.lines, tree.references)
    for old, new in moved:
        for table in tables:
            for key, value in list(table.items()):
                if key[: len(old)] == old:
                    table[(*new, *key[len(old) :])] = value
    return [Remark(one.key, tree.lines.get(one.key, 1), one.message, one.remedy) for one in gone]


def _blocks(data: Any, method: str | None, place: Key = ()) -> Iterator[tuple[dict[str, Any], Key]]:
    """Yield the blocks that a change applies to: the recipe itself, or every block of a method."""
    if method is None:
        yield data, ()
    elif isinstance(data, dict):
        if data.get("name") == method:
            yield data, place
        for name, inner in data.items():
            yield from _blocks(inner, method, (*place, name))
    elif isinstance(data, list):
        for index, inner in enumerate(data):
            yield from _blocks(inner, method, (*place, index))


def _mapping(block: dict[str, Any], path: Sequence[str]) -> dict[str, Any] | None:
    found: Any = block
    for part in path:
        found = found.get(part) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else None


def _put(block: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for part in path[:-1]:
        block = block.setdefault(part, {})
    block.setdefault(path[-1], value)
