"""Write a recipe as YAML, with every default, so that reading it gives an equal recipe."""

from __future__ import annotations

import textwrap
from copy import deepcopy
from typing import Any

import yaml

from peftcli.recipe.schema import Recipe
from peftcli.recipe.yaml.environment_variables import escape
from peftcli.recipe.yaml.scalars import read_scalar
from peftcli.recipe.yaml.value_tree import Tree, has_part


class Reference(str):
    """A value as it was written, with the names of environment variables in place of their values.

    Args:
        text: with `${NAME}`.
        value: what it stood for; its type is kept.
    """

    tag: str

    def __new__(cls, text: str, value: Any) -> Reference:
        """Return the text with the YAML tag of the value's type."""
        made = super().__new__(cls, text)
        made.tag = f"tag:yaml.org,2002:{'null' if value is None else type(value).__name__}"
        return made


def dump_recipe(recipe: Recipe, written: Tree | None = None) -> str:
    """Return the YAML text of a recipe, in the order of the schema.

    Args:
        written: the tree that it was read from: values of environment variables are written by name.
    """
    return dump_plain(recipe.as_dict() if written is None else with_references(recipe, written))


def dump_plain(data: dict[str, Any]) -> str:
    """Return the YAML text of a recipe's plain data, which can hold `Reference`s."""
    style = None if any(isinstance(value, dict | list) for value in data.values()) else False  # no {a: 1} as a whole
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=style, width=120)


def dump_block(key: str, value: Any) -> str:
    """Return the YAML text of one key at the top of a recipe, with a line for each key of a block."""
    if not isinstance(value, dict):
        return dump_plain({key: value})
    return f"{key}:\n" + "".join(textwrap.indent(dump_plain({name: one}), "  ") for name, one in value.items())


def with_references(recipe: Recipe, written: Tree) -> dict[str, Any]:
    """Return a recipe as plain data in which values of environment variables are `Reference`s.

    Such a value can be a token or a password: whatever leaves the process has its name.
    """
    data = recipe.as_dict()
    for key, text in written.references.items():
        value = written.value(key)
        if not isinstance(value, dict | list):
            place, rest = _innermost(data, key)
            found = _replaced(place, rest, value, Reference(text, value))
            if not found and isinstance(value, str) and value:  # a short form that was written out elsewhere
                _replaced(data, None, value, Reference(text, value))
    return data


def as_written(tree: Tree) -> dict[str, Any]:
    """Return a recipe's data as its author wrote it, in which values of environment variables are `Reference`s."""
    data: dict[str, Any] = deepcopy(tree.data)
    for (*blocks, last), text in tree.references.items():
        place: Any = data
        for part in blocks:
            place = place[part] if has_part(place, part) else None
        if has_part(place, last):  # an override can have replaced what was there
            place[last] = Reference(text, place[last])
    return data


def _innermost(data: Any, key: tuple[str | int, ...]) -> tuple[Any, str | int | None]:
    """Return the innermost block on the way to a key, and what is left of the way: one part, or None for all below."""
    for number, part in enumerate(key):
        inner = data.get(part) if isinstance(data, dict) else data[part] if _holds(data, part) else None
        if not isinstance(inner, dict | list):
            return data, part if number == len(key) - 1 else None
        data = inner
    return data, None


def _holds(data: Any, part: str | int) -> bool:
    return isinstance(data, list) and isinstance(part, int) and part < len(data)


def _replaced(block: Any, only: str | int | None, value: Any, reference: Reference) -> bool:
    """Replace a value in a block, or below it if `only` is None; tell whether it was there."""
    pairs = list(block.items() if isinstance(block, dict) else enumerate(block))
    found = False
    for name, inner in pairs:
        if isinstance(inner, dict | list):
            found |= only is None and _replaced(inner, None, value, reference)
        elif (only is None or name == only) and inner == value and isinstance(inner, bool) == isinstance(value, bool):
            block[name] = reference
            found = True
    return found


class _Dumper(yaml.SafeDumper):
    """PyYAML's dumper, which also quotes text that YAML 1.2 would read as another value, and escapes `${`."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write equal values twice instead of using an alias."""
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        """Indent lists below their key."""
        super().increase_indent(flow, False)


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    text = escape(value)
    try:
        plain = read_scalar(text) == text
    except ValueError:
        plain = False
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else "'")


def _reference(dumper: yaml.SafeDumper, value: Reference) -> yaml.ScalarNode:
    return dumper.represent_scalar(value.tag, str(value), style="'")


_Dumper.add_representer(str, _text)
_Dumper.add_representer(Reference, _reference)
