"""`peft convert FILE [-o FILE]`: a recipe from a configuration of axolotl or LLaMA-Factory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from peftcli.console.options import Json, refuse_taken

if TYPE_CHECKING:
    from peftcli.starting.convert.conversion import Conversion


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("convert", short_help="Convert an axolotl or LLaMA-Factory config into a recipe.")(convert)


def convert(
    config: Annotated[
        Path,
        typer.Argument(metavar="CONFIG", help="A YAML configuration for axolotl or LLaMA-Factory.", show_default=False),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="Write the recipe to this file, not to standard output.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Convert a configuration of axolotl or LLaMA-Factory into a recipe, and list what became of each key.

    The recipe is valid. Keys without a counterpart are listed at the top of the recipe, for you to decide.

    Example: peft convert axolotl.yml -o recipe.yaml
    """
    import sys
    from shlex import quote

    from peftcli.atomic import write_text
    from peftcli.console.output import print_json, result_console
    from peftcli.console.starting_views.conversion_list import print_outcomes
    from peftcli.console.terminal import safe_console, wrote
    from peftcli.starting.convert.convert_file import convert_file
    from peftcli.starting.convert.converted_recipe import recipe_text

    if output is not None:
        refuse_taken(output, "--output")
    work = convert_file(config)
    text = recipe_text(work)
    if output is not None:
        write_text(output, text, instead="choose another --output")
    if as_json:
        print_json(_document(work, None if output is not None else text, output))
    elif output is None:
        print(text, end="")
        print_outcomes(safe_console(stderr=True, soft_wrap=not sys.stderr.isatty()), work)
    else:
        print_outcomes(result_console(), work)
        wrote(output, f"peft validate {quote(str(output))}")


def _document(work: Conversion, text: str | None, output: Path | None) -> dict[str, object]:
    return {
        "tool": work.tool,
        "recipe": work.recipe,
        "text": text,
        "written": None if output is None else str(output),
        "keys": [one.as_dict() for one in work.outcomes],
    }
