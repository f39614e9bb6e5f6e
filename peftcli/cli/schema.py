"""`peft schema`: the JSON schema of recipes, for editors and other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("schema", short_help="Print the JSON schema of recipes.")(schema)


def schema(
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write it there instead of standard output."),
    ] = None,
) -> None:
    """Print the JSON schema of recipes: every key with its type, default, bounds and meaning.

    Example: peft schema -o recipe.schema.json, and as the first line of a recipe:
    # yaml-language-server: $schema=recipe.schema.json
    """
    import json

    from peftcli.errors import UserError
    from peftcli.names import NAMES
    from peftcli.recipe.json_schema import recipe_schema

    text = json.dumps(recipe_schema(NAMES), indent=2)
    if output is None:
        print(text)
        return
    try:
        output.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        reason = f"cannot write {output}: {error.strerror}"
        raise UserError(reason, suggestion="name a file in a directory that exists") from error
    typer.echo(f"wrote {output}", err=True)
