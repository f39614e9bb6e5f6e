"""A method on the command line: `NAME:key=value,...`, lists in brackets."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from peftcli.recipe.method_params import MethodParams


def method_params(option: str, text: str) -> MethodParams:
    """Return the checked hyper-parameters of a method without a recipe.

    Args:
        option: that the text was given to, for messages.
        text: `NAME:key=value,...`.

    Raises:
        UserError: there is no such method, or a key or value is wrong.
    """
    from peftcli.names import NAMES
    from peftcli.recipe.load_recipe import recipe_from_overrides

    changes = ["model.name_or_path=a-tiny-model", "task=causal_lm", *method_overrides(text)]
    return recipe_from_overrides(f"{option} {text}", changes, NAMES).recipe.method


def method_overrides(text: str) -> list[str]:
    """Return `NAME:key=value,...` as changes of a recipe: `lora:r=8` is `method.name=lora`, `method.r=8`."""
    name, _, settings = text.partition(":")
    return [f"method.name={name}", *(f"method.{setting}" for setting in split_outside_brackets(settings))]


def split_outside_brackets(text: str) -> list[str]:
    """Split at the commas that stand in no brackets, braces or quotes; spaces around a part and empty parts go.

    >>> split_outside_brackets("r=8,target_modules=[attn.q,attn.v]")
    ['r=8', 'target_modules=[attn.q,attn.v]']
    """
    parts = [""]
    depth = 0
    quote = ""
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
        elif char in "[{":
            depth += 1
        elif char in "]}":
            depth -= 1
        if char == "," and depth <= 0 and not quote:
            parts.append("")
        else:
            parts[-1] += char
    return [part.strip() for part in parts if part.strip()]
