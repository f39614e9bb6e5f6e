"""`peft recommend RECIPE`: method, rank, rate, batch and epochs for this model, data and memory, with their sources."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from peftcli.console.options import Json, Overrides, RecipePath, TrustRemoteCode, note, refuse_taken
from peftcli.console.progress_bar import with_progress
from peftcli.console.terminal import wrote
from peftcli.process_state import large_imports


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("recommend", short_help="Recommend method, rank, rate and batch, with the reasons.")(
        with_progress(recommend)
    )


def recommend(
    recipe: RecipePath,
    overrides: Overrides = None,
    memory: Annotated[
        str | None,
        typer.Option("--memory", metavar="SIZE", help="Memory of one device, such as 24GB.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="Write the recipe with the recommended values to this file.",
            show_default=False,
        ),
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
) -> None:
    """Recommend settings for the recipe's model, task, rows and memory, each with its source, scope and limit.

    It reads only the model's config. Your own comparisons and sweeps beside the recipe's output_dir take precedence
    over the literature.

    Example: peft recommend configs/lora.yaml --memory 24GB
    """
    from shlex import quote

    from peftcli.models.own_code import with_allowed_code
    from peftcli.names import NAMES
    from peftcli.recipe.load_recipe import TRUST_REMOTE_CODE, load_recipe
    from peftcli.record.shown_numbers import bytes_of

    size = None if memory is None else bytes_of("--memory", memory)
    if output is not None:
        refuse_taken(output, "--output")
    typed = [TRUST_REMOTE_CODE] if trust_remote_code else []
    loaded = with_allowed_code(load_recipe(recipe, [*(overrides or []), *typed], NAMES, need_data=False))

    with large_imports():
        from peftcli.analysis.advice.advised_recipe import advised_recipe
        from peftcli.analysis.advice.recommendation import recommend as find
    from peftcli.atomic import write_text
    from peftcli.console.output import print_json, result_console
    from peftcli.console.study_views.advice_view import print_recommendation

    found = find(loaded, size)
    if output is not None:
        write_text(output, advised_recipe(loaded, found.lines), instead="choose another --output")
        wrote(output, f"peft validate {quote(str(output))}")
    if as_json or output is not None:
        for text in found.notes:
            note(text)
    if as_json:
        print_json([line.as_dict() for line in found.lines])
    elif output is None:
        print_recommendation(result_console(), found)
