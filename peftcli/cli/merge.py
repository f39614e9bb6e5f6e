"""`peft merge RUN -o DIR`: fold what was trained into the base weights, and verify the result."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from peftcli.cli.options import Json, Quiet, RunPath


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("merge")(merge)


def merge(
    run: RunPath,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Directory of the merged model; must not exist yet.")
    ],
    dtype: Annotated[
        str,
        typer.Option("--dtype", help="Type of the merged weights: auto (the base's), float32, bfloat16 or float16."),
    ] = "auto",
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="MODEL", help="The base model, if it is no longer where the run found it."),
    ] = None,
    max_shard_size: Annotated[str, typer.Option("--max-shard-size", help="Largest weight file.")] = "5GB",
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Compare the merged model with base + adapter on real rows.")
    ] = True,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Merge an adapter into its base model, and verify that both give the same outputs.

    Example: peft merge runs/lora -o merged
    """
    from peftcli.cli.output import print_json
    from peftcli.merging.merge import merge_run

    report = merge_run(run, output, dtype=dtype, base=base, max_shard_size=max_shard_size, verify=verify)
    if as_json:
        print_json(report.as_dict())
