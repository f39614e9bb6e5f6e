"""The recipe with what is recommended in it, the reasons as comments."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from peftcli.analysis.advice.recommendation import ACCUMULATION, Advice
from peftcli.recipe.load_recipe import LoadedRecipe
from peftcli.recipe.yaml.dump_recipe import as_written, dump_plain
from peftcli.recipe.yaml.recipe_comments import comment_lines

_OF_EVERY_METHOD = ("modules_to_save", "trainable_token_indices", "init_from")


def lines_to_paste(lines: Sequence[Advice]) -> str:
    """Return what is recommended as blocks of a recipe."""
    blocks: dict[str, dict[str, Any]] = {}
    for line in lines:
        _put_(blocks, line)
    return "".join(_block(name, block, {}) for name, block in blocks.items())


def advised_recipe(loaded: LoadedRecipe, lines: Sequence[Advice]) -> str:
    """Return the recipe as it was written, with the recommended values and a comment above each.

    The method's block is replaced where another method is recommended; everything else stays.
    """
    data = as_written(loaded.tree)
    advised = {line.key: line for line in lines}
    method = data.get("method")
    old = method if isinstance(method, dict) else {}
    same = old.get("name") == advised["method.name"].value
    data["method"] = {"name": None} | {key: value for key, value in old.items() if same or key in _OF_EVERY_METHOD}
    data.setdefault("training", {})
    if ACCUMULATION not in advised:
        data["training"].pop(ACCUMULATION.partition(".")[2], None)
    for line in lines:
        _put_(data, line)
    order = [key for key in ("model", "task", "data", "method", "training") if key in data]
    whole = {key: data[key] for key in [*order, *(key for key in data if key not in order)]}
    return "".join(
        _block(name, value, advised) if isinstance(value, dict) and value else dump_plain({name: value})
        for name, value in whole.items()
    )


def _put_(data: dict[str, Any], line: Advice) -> None:
    """Set a dotted key in plain data."""
    *path, last = line.key.split(".")
    for part in path:
        inner = data.get(part)
        data[part] = inner if isinstance(inner, dict) else {}
        data = data[part]
    data[last] = line.value


def _block(name: str, block: Mapping[str, Any], advised: Mapping[str, Advice]) -> str:
    """Return a block of a recipe, a comment above each key that is recommended."""
    lines = [f"{name}:"]
    for key, value in block.items():
        for line in (one for dotted, one in advised.items() if f"{dotted}.".startswith(f"{name}.{key}.")):
            lines += comment_lines(_reason(line), "  # ", "  # ")
        lines += textwrap.indent(dump_plain({key: value}), "  ").splitlines()
    return "\n".join(lines) + "\n"


def _reason(line: Advice) -> str:
    return (
        f"{line.reason}. Found on: {line.scope}. Limit: {line.limit}. [{line.source}, {line.date}] Test: {line.against}"
    )
