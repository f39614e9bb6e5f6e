"""A recipe as YAML with every default filled in, which loads again to an equal recipe."""

from __future__ import annotations

from typing import Any

import yaml

from peftcli.recipe.schema import Recipe
from peftcli.recipe.yaml.environment_variables import escape
from peftcli.recipe.yaml.scalars import read_scalar


def dump_recipe(recipe: Recipe) -> str:
    """Return the YAML text of a recipe, blocks in the order of the schema."""
    return yaml.dump(
        recipe.as_dict(), Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120
    )


class _Dumper(yaml.SafeDumper):
    """PyYAML's dumper, except that text which YAML 1.2 would read as something else is quoted, and `${` is escaped."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write equal values out instead of `*id001`."""
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


_Dumper.add_representer(str, _text)
