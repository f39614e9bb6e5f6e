"""`peft merge RUN -o DIR`: fold what was trained into the base weights, and verify the result."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from peftcli.console.options import CheckpointName, Json, Quiet, TrustRemoteCode, note
from peftcli.console.several_processes import NumProcesses, share_among
from peftcli.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from peftcli.merging.merge_report import MergeReport


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("merge", short_help="Fold an adapter into its base model, and verify.")(merge)


def merge(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="The directory that `peft train` left; several with --weights."),
    ],
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
    weights: Annotated[
        str | None, typer.Option("--weights", help="Weights of several LoRA runs of one base, such as 0.7,0.3.")
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option("--rank", min=1, help="Reduce the sum of several adapters to this rank."),
    ] = None,
    requantize: Annotated[
        bool,
        typer.Option("--requantize", help="Write the model in 4 bits, and print what accuracy that costs."),
    ] = False,
    checkpoint: CheckpointName = None,
    num_processes: NumProcesses = None,
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Merge an adapter into its base model, and verify that both give the same outputs.

    Example: peft merge runs/lora -o merged
    """
    _check_number_of_runs(len(runs), weights, rank, requantize)
    shares = None if weights is None else _numbers(weights)
    options = {"--output": output, "--dtype": dtype, "--base": base, "--max-shard-size": max_shard_size}
    options |= {"--no-verify": not verify, "--weights": weights, "--rank": rank, "--requantize": requantize}
    options |= {"--checkpoint": checkpoint, "--trust-remote-code": trust_remote_code, "--quiet": quiet}
    share_among(num_processes, "merge", runs, options | {"--json": as_json})

    from peftcli.merging.merge_run import merge_run, merge_runs

    told = _Told(quiet)
    if shares is None:
        merged = partial(merge_run, runs[0], output, requantize=requantize)
    else:
        merged = partial(merge_runs, runs, output, weights=shares, rank=rank)
    merged = partial(merged, base=base, trust_code=trust_remote_code, checkpoint=checkpoint)
    report = merged(dtype=dtype, max_shard_size=max_shard_size, verify=verify, note=told)
    for text in report.notes:
        told(text)
    _show(report, as_json)


def _show(report: MergeReport, as_json: bool) -> None:
    """Print the report, in the main process."""
    from peftcli.console.output import print_json, result_console
    from peftcli.distributed.launching import is_main_process

    if not is_main_process():
        return
    if as_json:
        print_json(report.as_dict())
    else:
        _print(report, result_console())


class _Told:
    """Shows each note once, when it is known: what takes long says so at the start, and the report repeats it."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._shown: set[str] = set()

    def __call__(self, text: str) -> None:
        if text not in self._shown and not self._quiet:
            note(text)
        self._shown.add(text)


def _check_number_of_runs(runs: int, weights: str | None, rank: int | None, requantize: bool) -> None:
    """Refuse options that do not go with one run, or with several."""
    if runs == 1 and (weights is not None or rank is not None):
        raise UserError("--weights and --rank are for several runs", suggestion="name two runs or more")
    if runs > 1 and weights is None:
        raise UserError(f"{runs} runs need --weights, one for each", suggestion=f"add --weights {_even(runs)}")
    if runs > 1 and requantize:
        raise UserError("--requantize is for one run", suggestion="merge several without it")


def _even(runs: int) -> str:
    return ",".join([f"{1 / runs:.2g}"] * runs)


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--weights {text!r} are no numbers", suggestion="write them as 0.7,0.3") from None


def _print(report: MergeReport, console: Console) -> None:
    from peftcli.record.shown_numbers import byte_size

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
