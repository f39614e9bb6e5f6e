"""`peft validate RECIPE [key=value ...]`: report all mistakes in a recipe together, without importing torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from peftcli.console.options import Json, Overrides, RecipePath

if TYPE_CHECKING:
    from peftcli.errors import Problem
    from peftcli.recipe.load_recipe import LoadedRecipe


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("validate", short_help="Check a recipe and the files that it names.")(validate)


def validate(recipe: RecipePath, overrides: Overrides = None, as_json: Json = False) -> None:
    """Check a recipe and the local files it names: keys, types, ranges, contradictions, model, data.

    Example: peft validate configs/lora.yaml method.r=16
    """
    from peftcli.errors import UserError
    from peftcli.models.own_code import with_allowed_code
    from peftcli.names import NAMES
    from peftcli.preflight import check_surroundings
    from peftcli.recipe.load_recipe import load_recipe

    try:
        loaded = load_recipe(recipe, overrides or [], NAMES, surroundings=check_surroundings)
        loaded = with_allowed_code(loaded)
    except UserError as error:
        if not as_json:
            raise
        _print_json(error.problems)
        raise typer.Exit(2) from error
    if as_json:
        _print_json([])
    else:
        print(_summary(loaded))


def _print_json(problems: Sequence[Problem]) -> None:
    from peftcli.console.output import print_json

    fields = ("file", "line", "key", "message", "suggestion")
    errors = [{name: _writable(getattr(problem, name)) for name in fields} for problem in problems]
    print_json({"valid": not errors, "errors": errors})


def _writable(value: str | int | None) -> str | int | None:
    """Return a text without half characters, which an argument or a file name that is not UTF-8 brings along."""
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value


def _summary(loaded: LoadedRecipe) -> str:
    recipe = loaded.recipe
    data = recipe.data
    sources = [] if data is None else [data.path] if data.path else [source.path for source in data.datasets or ()]
    lines = {
        "model": recipe.model.name_or_path,
        "task": recipe.task,
        "data": ", ".join(str(path) for path in sources),
        "method": recipe.method.name,
        "output": recipe.output_dir,
    }
    return "\n".join([f"{loaded.path} is valid", *(f"  {name:<7} {value}" for name, value in lines.items())])
