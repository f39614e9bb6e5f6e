"""Write a recipe as YAML, with every default, so that reading it gives an equal recipe."""

from __future__ import annotations

from typing import Any

import yaml

from peftcli.recipe.schema import Recipe
from peftcli.recipe.yaml.environment_variables import escape
from peftcli.recipe.yaml.scalars import read_scalar


def dump_recipe(recipe: Recipe) -> str:
    """Return the YAML text of a recipe, in the order of the schema."""
    return yaml.dump(
        recipe.as_dict(), Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120
    )


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


_Dumper.add_representer(str, _text)
