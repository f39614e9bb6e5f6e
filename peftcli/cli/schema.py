"""`peft schema`: the JSON schema of recipes, for editors and other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from peftcli.console.terminal import wrote


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("schema", short_help="Print the JSON schema of recipes.")(schema)


def schema(
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Write the schema to this file instead of standard output."
        ),
    ] = None,
) -> None:
    """Print the JSON schema of recipes: every key with its type, default, bounds and meaning.

    Example: peft schema -o recipe.schema.json, and as the first line of a recipe:
    # yaml-language-server: $schema=recipe.schema.json
    """
    import json

    from peftcli.atomic import new_file
    from peftcli.names import NAMES
    from peftcli.recipe.json_schema import recipe_schema
    from peftcli.write_errors import OTHER_OUTPUT

    text = json.dumps(recipe_schema(NAMES), indent=2)
    if output is None:
        print(text)
        return
    with new_file(output, instead=OTHER_OUTPUT) as file:
        file.write(text + "\n")
    wrote(output)
