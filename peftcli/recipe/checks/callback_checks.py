"""Callbacks by name: all are offered by installed packages."""

from __future__ import annotations

from collections.abc import Iterator

from peftcli.recipe.pydantic_messages import Finding
from peftcli.recipe.schema import Recipe
from peftcli.recipe.vocabulary import Names


def check_callbacks(recipe: Recipe, names: Names) -> Iterator[Finding]:
    """Yield the names in `training.callbacks` that no installed package offers."""
    for index, name in enumerate(recipe.training.callbacks):
        if name not in names.callbacks:
            reason = f"training.callbacks: no installed package offers a callback {name!r}"
            yield Finding(("training", "callbacks", index), reason, "`peft plugins` lists those that are installed")
