"""`peft recipes list | show NAME | copy NAME [-o FILE]`: the shipped recipes, to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from peftcli.console.completions import complete_recipe
from peftcli.console.options import Json, refuse_taken
from peftcli.console.terminal import wrote

RecipeName = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="The recipe's name in `peft recipes list`.",
        show_default=False,
        autocompletion=complete_recipe,
    ),
]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    group = typer.Typer(
        no_args_is_help=True, rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]}
    )
    group.command("list", short_help="List the recipes: task, model, method, memory, purpose.")(list_recipes)
    group.command("show", short_help="Print a recipe.")(show_recipe)
    group.command("copy", short_help="Copy a recipe to a file.")(copy_recipe)
    app.add_typer(group, name="recipes", short_help="List, show and copy the shipped recipes.", help=_HELP)


_HELP = """List, show and copy the shipped recipes: papers' settings, and today's usual fine-tunes.

Example: peft recipes copy lora-smollm2-chat -o chat.yaml"""


def list_recipes(as_json: Json = False) -> None:
    """List the shipped recipes: task, model, method, memory of one device, purpose.

    Example: peft recipes list
    """
    from peftcli.console.output import print_json, result_console
    from peftcli.starting.shipped_recipes import shipped_recipes

    found = shipped_recipes()
    if as_json:
        print_json([one.as_dict() for one in found])
        return
    from peftcli.console.starting_views.recipe_list import print_recipes

    print_recipes(result_console(), found)


def show_recipe(name: RecipeName) -> None:
    """Print a shipped recipe as it is.

    Example: peft recipes show qlora-llama-3.1-8b
    """
    from peftcli.starting.shipped_recipes import shipped_recipe

    print(shipped_recipe(name).text(), end="")


def copy_recipe(
    name: RecipeName,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="The file; NAME.yaml by default.", show_default=False),
    ] = None,
) -> None:
    """Copy a shipped recipe to a file, for you to change.

    Example: peft recipes copy lora-smollm2-chat -o chat.yaml
    """
    from shlex import quote

    from peftcli.atomic import write_text
    from peftcli.starting.shipped_recipes import shipped_recipe

    one = shipped_recipe(name)
    file = Path(f"{one.name}.yaml") if output is None else output
    refuse_taken(file, "--output")
    write_text(file, one.text(), instead="choose another file with -o")
    wrote(file, "set data.path to your rows", f"peft validate {quote(str(file))}")
