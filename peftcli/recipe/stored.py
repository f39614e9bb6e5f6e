"""The recipe that a run stored: read as the version that wrote it meant it."""

from __future__ import annotations

from pathlib import Path

from peftcli.errors import Problem, UserError
from peftcli.recipe import upgrades
from peftcli.recipe.load import LoadedRecipe, load_recipe
from peftcli.recipe.registry import Registry

STORED = "recipe.yaml"
"""Its name in a run directory."""


def load_stored_recipe(file: Path, registry: Registry) -> LoadedRecipe:
    """Read a run's recipe.yaml; keys of an earlier version get their names of today.

    Args:
        file: recipe.yaml of a run; that of an imported adapter has no `data`.
        registry: the methods.

    Raises:
        UserError: it was changed by hand, damaged, or written by a version that is too far away.
    """
    try:
        return load_recipe(file, [], registry, need_data=False, upgrades=upgrades.CHANGES)
    except UserError as error:
        about = Problem(
            "this is the recipe that a run stored, not one to edit",
            file=str(file),
            suggestion="undo what was changed in it; if another version of peftcli wrote it (summary.json has its "
            "number), use that one",
        )
        raise UserError([*error.problems, about]) from error
