"""What a shell completes: keys and values of a recipe, methods, checkpoints. No torch; mistakes complete nothing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def complete_override(incomplete: str) -> list[str]:
    """Return the changes to a recipe that begin as what was typed: keys with `=`, and values after it.

    zsh and fish hand over the whole word; bash parts it at `=`.
    """
    words = _words()
    if "=" in incomplete and incomplete != "=":
        key, _, value = incomplete.partition("=")
        return [f"{key}={each}" for each in _values(key) if each.startswith(value)]
    if incomplete == "=" and words:
        return _values(words[-1])
    if words[-1:] == ["="] and len(words) > 1:
        return [each for each in _values(words[-2]) if each.startswith(incomplete)]
    keys = [key for key in _keys() if key.startswith(incomplete)] if incomplete else []
    values = _values(keys[0]) if len(keys) == 1 else []  # a shell adds a space behind the only answer
    return [f"{key}={value}" for key in keys for value in values] or [f"{key}=" for key in keys]


def complete_method(incomplete: str) -> list[str]:
    """Return the methods that begin as what was typed."""
    from peftcli.protocol.registry import registry

    return [name for name in registry.names() if name.startswith(incomplete)]


def complete_methods(incomplete: str) -> list[str]:
    """Return lists of methods, parted by commas, whose last one begins as what was typed."""
    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in complete_method(last) if name not in before.split(",")]


def complete_recipe(incomplete: str) -> list[str]:
    """Return the shipped recipes that begin as what was typed."""
    from peftcli.starting.shipped_recipes import recipe_folder

    return [
        name for name in sorted(file.stem for file in recipe_folder().glob("*.yaml")) if name.startswith(incomplete)
    ]


def complete_task(incomplete: str) -> list[str]:
    """Return the tasks that begin as what was typed."""
    from peftcli.names import NAMES

    return [name for name in NAMES.tasks if name.startswith(incomplete)]


def complete_checkpoint(incomplete: str) -> list[str]:
    """Return `best`, `last` and the steps whose checkpoints the runs have that were typed so far."""
    runs = [Path(word) for word in _words() if (Path(word) / "checkpoints").is_dir()]
    steps = [path.name for run in runs for path in sorted(run.glob("checkpoints/step-*"))]
    names = ["best", "last", *(f"step-{int(name.removeprefix('step-'))}" for name in steps if name[5:].isdigit())]
    return [name for name in dict.fromkeys(names) if name.startswith(incomplete)]


def _words() -> list[str]:
    """Return the words before the one that is being typed, as the shell's function hands them over."""
    if others := os.environ.get("_TYPER_COMPLETE_ARGS"):  # zsh, fish and PowerShell
        return others.split() if others.endswith(" ") else others.split()[:-1]
    number = os.environ.get("COMP_CWORD", "")
    return os.environ.get("COMP_WORDS", "").split()[: int(number)] if number.isdigit() else []


def _schema() -> dict[str, Any]:
    from peftcli.names import NAMES
    from peftcli.recipe.json_schema import recipe_schema

    return recipe_schema(NAMES)


def _keys() -> list[str]:
    """Return the dotted keys of a recipe, those of every method among them."""
    schema = _schema()
    found: dict[str, None] = {}
    for name, block in schema["properties"].items():
        inner = {key for each in _blocks(schema, block) for key in each.get("properties", {})}
        found.update(dict.fromkeys([f"{name}.{key}" for key in sorted(inner)] or [name]))
    return list(found)


def _values(key: str) -> list[str]:
    """Return the values that a key can have, where they are a few."""
    schema = _schema()
    blocks: list[dict[str, Any]] = [schema]
    for part in key.split("."):
        properties = [block["properties"][part] for block in blocks if part in block.get("properties", {})]
        blocks = [inner for each in properties for inner in _blocks(schema, each)]
    found: dict[str, None] = {}
    for block in blocks:
        values = block.get("enum", [block["const"]] if "const" in block else [])
        values = [True, False] if block.get("type") == "boolean" else values
        found.update(dict.fromkeys(str(each).lower() if isinstance(each, bool) else str(each) for each in values))
    return list(found)


def _blocks(schema: dict[str, Any], block: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a block with all that it may be instead: references, alternatives, and what follows from a name."""
    found = [block]
    if "$ref" in block:
        found += _blocks(schema, schema["$defs"][block["$ref"].rpartition("/")[2]])
    for each in (*block.get("anyOf", ()), *block.get("oneOf", ()), *block.get("allOf", ())):
        found += _blocks(schema, each)
    return found + (_blocks(schema, block["then"]) if "then" in block else [])
