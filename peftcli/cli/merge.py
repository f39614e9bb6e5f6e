"""`peft merge RUN -o DIR`: fold what was trained into the base weights, and verify the result."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from peftcli.cli.options import Json, Quiet, RunPath, note

if TYPE_CHECKING:
    from rich.console import Console

    from peftcli.merging.report import MergeReport


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
    from peftcli.cli.output import print_json, result_console
    from peftcli.merging.merge import merge_run

    report = merge_run(run, output, dtype=dtype, base=base, max_shard_size=max_shard_size, verify=verify)
    for text in [] if quiet else report.notes:
        note(text)
    if as_json:
        print_json(report.as_dict())
    else:
        _print(report, result_console())


def _print(report: MergeReport, console: Console) -> None:
    from peftcli.cli.output import byte_size

    changed = f"{report.changed} of {report.tensors} tensors changed"
    console.print(f"{report.output}: {byte_size(report.size)} in {report.dtype}, {changed}", markup=False)
    if report.verified:
        differences = f"{report.max_abs_diff:.2g} at most, {report.mean_abs_diff:.2g} on average"
        console.print(
            f"verified on {report.rows} rows: {report.agreement:.1%} of the greedy outputs agree; the outputs differ "
            f"by {differences} (tolerance {report.tolerance:.2g})"
        )
    else:
        console.print("not verified")
    if report.quantization_agreement is not None:
        console.print(f"agreement with the quantised base that it was trained on: {report.quantization_agreement:.1%}")
