"""Keys that an earlier peftcli wrote into recipes and adapters under another name: old key -> new key, as data.

A stored recipe has every default of its time filled in, so that each of its keys is met by every later version. Runs
and adapters are read through this table; a recipe that somebody writes is not: there an old name is a mistake with a
suggestion.
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
    """One key that was renamed or taken out.

    Args:
        version: the first that writes the new name, or none.
        old: dotted path; below the method's own block where `method` is given.
        new: its path now, of the same block; None for a key that is gone.
        method: whose hyper-parameter it is, alone or as a part of a composition.
        value: turns the old value into the new one.
        harmless: values of a key that is gone under which nothing is lost, its default above all.
        remedy: what to do about any other value of it.
    """

    version: str
    old: str
    new: str | None
    method: str | None = None
    value: Callable[[Any], Any] = _same
    harmless: tuple[Any, ...] = ()
    remedy: str = ""


CHANGES: tuple[Change, ...] = (
    Change(
        "0.1.0",
        "training.group_by_length",
        "training.train_sampling_strategy",
        value=lambda grouped: "group_by_length" if grouped else "random",
    ),
)
"""In the order in which they were made."""


@dataclass(frozen=True)
class Gone:
    """A stored value that this version cannot honour."""

    key: Key
    message: str
    remedy: str


def upgrade_(data: dict[str, Any], changes: Sequence[Change]) -> tuple[list[tuple[Key, Key]], list[Gone]]:
    """Give the old keys of a stored recipe their names of today, in place.

    Args:
        data: the recipe's top level.

    Returns:
        The renamed keys as (old, new), and what is gone.
    """
    moved: list[tuple[Key, Key]] = []
    gone: list[Gone] = []
    for change in changes:
        for block, place in list(_blocks(data, change.method)):
            *parents, last = change.old.split(".")
            parent = _mapping(block, parents)
            if parent is None or last not in parent:
                continue
            old, value = (*place, *parents, last), parent.pop(last)
            if change.new is not None:
                _put(block, change.new.split("."), change.value(value))
                moved.append((old, (*place, *change.new.split("."))))
            elif value not in change.harmless:
                message = f"{dotted(old)} = {value!r} is no longer there since peftcli {change.version}"
                gone.append(Gone(old, message, change.remedy or "use the peftcli that wrote it"))
    return moved, gone


def upgrade_tree_(tree: Tree, changes: Sequence[Change]) -> list[Remark]:
    """Upgrade a parsed recipe in place, the places of its keys too; return what is gone."""
    moved, gone = upgrade_(tree.data, changes)
    for old, new in moved:
        for key, line in list(tree.lines.items()):
            if key[: len(old)] == old:
                tree.lines[(*new, *key[len(old) :])] = line
    return [Remark(one.key, tree.lines.get(one.key, 1), one.message, one.remedy) for one in gone]


def _blocks(data: Any, method: str | None, place: Key = ()) -> Iterator[tuple[dict[str, Any], Key]]:
    """Yield the blocks that a change is about: the recipe itself, or every block of one method."""
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
