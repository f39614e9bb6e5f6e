"""`peft export RUN -o DIR`: write a run's adapter for another library."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from peftcli.adapters.library_table import LIBRARIES
from peftcli.console.options import CheckpointName, Json, Quiet, RunPath, note

_INSTEAD = {name: text for library in LIBRARIES.values() for name, text in library.instead.items()}


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("export")(export)


def export(
    run: RunPath,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Directory to write; must not hold anything yet.")
    ],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar=f"<{'|'.join(LIBRARIES)}>",
            help=f"The library to write for: {', or '.join(library.files for library in LIBRARIES.values())}.",
            autocompletion=lambda: list(LIBRARIES),
        ),
    ] = "hf-peft",
    instead: Annotated[
        str | None,
        typer.Option(
            "--as",
            metavar=f"<{'|'.join(_INSTEAD)}>",
            help=" ".join(_INSTEAD.values()),
            autocompletion=lambda: list(_INSTEAD),
            show_default=False,
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="MODEL", help="The base model, if it is no longer where the run found it."),
    ] = None,
    checkpoint: CheckpointName = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write a run's adapter in another library's format.

    Example: peft export runs/lora -o lora-for-peft --to hf-peft
    """
    from peftcli.adapters.transfer import export_run
    from peftcli.console.output import print_json
    from peftcli.names import NAMES
    from peftcli.recipe.stored_recipe import load_stored_recipe, stored_recipe
    from peftcli.record.checkpoint_adapter import adapter_directory

    with ExitStack() as stack:
        if checkpoint is not None:
            recipe = load_stored_recipe(stored_recipe(run), NAMES).recipe
            run = stack.enter_context(adapter_directory(run, recipe, checkpoint))
        done = export_run(run, output, to=to, instead=instead, base=base)
    for text in [] if quiet else done.notes:
        note(text)
    if as_json:
        print_json(done.as_dict())
    else:
        print(f"{done.output}: {done.method} for {done.base}, {done.numbers:,} numbers, in the format of {done.kind}")
