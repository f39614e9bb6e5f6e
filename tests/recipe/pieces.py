"""Pieces of recipes, for whoever changes recipes at random: shipped ones, their keys, and values of the right types."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_origin

from pydantic import BaseModel

from peftcli.recipe.field_descriptions import choices, members, unwrap
from peftcli.recipe.schema import DataSpec, DistributedSpec, ModelSpec, TrainingSpec
from peftcli.recipe.yaml.yaml_lines import parse_yaml

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted([*ROOT.glob("configs/*.yaml"), *ROOT.glob("recipes/*.yaml")])
TEXTS = [path.read_text(encoding="utf-8") for path in SHIPPED]
TREES = [parse_yaml(text, {}).data for text in TEXTS]
BLOCKS: dict[str, type[BaseModel]] = {
    "model": ModelSpec,
    "data": DataSpec,
    "training": TrainingSpec,
    "distributed": DistributedSpec,
}
KEYS = [name for block in BLOCKS.values() for name in block.model_fields] + ["r", "target_modules", "rank_pattern"]
ODD_TEXTS = (
    "yes",
    "1e-4",
    "${HOME}",
    "${",
    "$${x}",
    "*",
    "&a",
    "lora",
    "auto",
    "steps",
    "0x1F",
    "\ud7ff",
    "\U0001d54f",
)


def places(tree: Any, key: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the path of every mapping and list in a tree."""
    if isinstance(tree, dict):
        yield key
        for name, value in tree.items():
            yield from places(value, (*key, name))
    elif isinstance(tree, list):
        yield key


def typed(annotation: Any) -> list[str]:
    """Return values, as YAML, that a field's type allows."""
    found = [f"'{word}'" for word in choices(annotation)]
    for member in members(annotation):
        plain, _ = unwrap(member)
        found += {bool: ["true", "false"], int: ["1", "2", "7"], float: ["0.5", "1"], str: ["x", "eval_f1"]}.get(
            plain, []
        )
        origin = get_origin(plain)
        found += ["null"] if plain is type(None) else ["[]"] if origin is list else ["{}"] if origin is dict else []
    return found


WELL_TYPED = [
    f"{head}.{name}={value}"
    for head, block in BLOCKS.items()
    for name, field in block.model_fields.items()
    for value in typed(field.annotation)
]
