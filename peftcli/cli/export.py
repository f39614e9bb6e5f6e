"""`peft export RUN -o DIR`: write a run's adapter for another library."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from peftcli.console.options import Json, Quiet, RunPath, note


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("export")(export)


def export(
    run: RunPath,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Directory to write; must not hold anything yet.")
    ],
    to: Annotated[
        Literal["hf-peft", "adapterhub"],
        typer.Option("--to", help="Whose files: HF peft's, or those of AdapterHub's `adapters` (safetensors)."),
    ] = "hf-peft",
    instead: Annotated[
        Literal["lora"] | None,
        typer.Option("--as", help="Write an AdaLoRA as the plain LoRA that is equal to it.", show_default=False),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="MODEL", help="The base model, if it is no longer where the run found it."),
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write a run's adapter in another library's format.

    Example: peft export runs/lora -o lora-for-peft --to hf-peft
    """
    from peftcli.adapters.transfer import export_run
    from peftcli.console.output import print_json

    done = export_run(run, output, to=to, instead=instead, base=base)
    for text in [] if quiet else done.notes:
        note(text)
    if as_json:
        print_json(done.as_dict())
    else:
        print(f"{done.output}: {done.method} for {done.base}, {done.numbers:,} numbers, in the format of {done.kind}")
