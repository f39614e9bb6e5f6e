"""`peft import DIR -o DIR`: turn an adapter of another library into a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from peftcli.adapters.library_table import LIBRARIES
from peftcli.console.options import Json, Quiet, TrustRemoteCode, note
from peftcli.console.progress_bar import with_progress
from peftcli.console.terminal import say


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("import", short_help="Turn another library's adapter into a run.")(with_progress(import_))


def import_(
    directory: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            help=f"An adapter that {' or '.join(library.title for library in LIBRARIES.values())} saved.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Run directory to write; must not hold anything yet.")
    ],
    base: Annotated[
        str | None,
        typer.Option(
            "--base", metavar="MODEL", help="The base model, if the adapter names none or the model has moved."
        ),
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Turn an adapter of another library into a run, for predict, eval --data, merge and export.

    Example: peft import downloaded-lora -o runs/imported --base models/llama
    """
    from peftcli.adapters.transfer import import_adapter
    from peftcli.console.output import print_json

    done = import_adapter(directory, output, base=base, trust_code=trust_remote_code)
    for text in [] if quiet else done.notes:
        note(text)
    if as_json:
        print_json(done.as_dict())
    else:
        numbers = f"{done.numbers:,} numbers; the task is {done.task}"
        say(f"{done.output}: {done.method} for {done.base}, {numbers}", result=True)
