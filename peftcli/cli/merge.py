"""`peft merge RUN -o DIR`: fold what was trained into the base weights, and verify the result."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from peftcli.adapters.library import PLAIN_LORA
from peftcli.console.options import CheckpointName, Json, Quiet, TrustRemoteCode, note
from peftcli.console.progress_bar import with_progress
from peftcli.console.several_processes import NumProcesses, share_among
from peftcli.errors import UserError
from peftcli.merging.several.combination import TYPES, combination
from peftcli.process_state import large_imports

if TYPE_CHECKING:
    from rich.console import Console

    from peftcli.merging.merge_report import MergeReport
    from peftcli.merging.several.combination import Combination

Output = Annotated[
    Path, typer.Option("--output", "-o", metavar="DIR", help="Directory of the merged model; must not exist yet.")
]
Dtype = Annotated[
    str,
    typer.Option(
        "--dtype",
        metavar="TYPE",
        help="Dtype of the merged weights: auto (the base's), float32, bfloat16 or float16.",
        autocompletion=lambda: ["auto", "float32", "bfloat16", "float16"],
    ),
]
Base = Annotated[
    str | None,
    typer.Option("--base", metavar="MODEL", help="The base model, if it is no longer where the run found it."),
]
Requantize = Annotated[
    bool, typer.Option("--requantize", help="Write the model in 4 bits, and print how much the outputs change.")
]
Weights = Annotated[
    str | None,
    typer.Option("--weights", metavar="W,W,...", help="Weights of several runs on the same base, such as 0.7,0.3."),
]
CombinationType = Annotated[
    str | None,
    typer.Option(
        "--combination-type",
        metavar=f"<{'|'.join(TYPES)}>",
        help="How to combine several runs (HF peft's names). The default is cat, the exact sum, for LoRA; else linear.",
        autocompletion=lambda: list(TYPES),
    ),
]
Density = Annotated[
    float | None,
    typer.Option(
        "--density", metavar="SHARE", help="Share of each adapter's values that ties, dare and magnitude_prune keep."
    ),
]
MajoritySignMethod = Annotated[
    str | None,
    typer.Option(
        "--majority-sign-method",
        metavar="<total|frequency>",
        help="How ties chooses a sign: by the sum of the values (total, the default) or by their number (frequency).",
        autocompletion=lambda: ["total", "frequency"],
    ),
]
SvdRank = Annotated[
    int | None, typer.Option("--rank", "--svd-rank", metavar="R", min=1, help="Cut the combined change to this rank.")
]
Seed = Annotated[
    int | None, typer.Option("--seed", metavar="N", min=0, help="Seed of the random values that dare keeps.")
]
AsAdapter = Annotated[
    bool, typer.Option("--adapter", help="Write the combination of several runs as a run with a LoRA, not as a model.")
]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("merge", short_help="Fold an adapter into its base model, and verify.")(with_progress(merge))


def merge(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="The directory that `peft train` left; several with --weights."),
    ],
    output: Output,
    dtype: Dtype = "auto",
    base: Base = None,
    max_shard_size: Annotated[
        str,
        typer.Option("--max-shard-size", metavar="SIZE", help="Maximum size of a weight file, such as 500MB or 2GiB."),
    ] = "5GB",
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Compare the merged model with base + adapter on real rows.")
    ] = True,
    weights: Weights = None,
    combination_type: CombinationType = None,
    density: Density = None,
    majority_sign_method: MajoritySignMethod = None,
    rank: SvdRank = None,
    seed: Seed = None,
    adapter: AsAdapter = False,
    requantize: Requantize = False,
    checkpoint: CheckpointName = None,
    num_processes: NumProcesses = None,
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Merge an adapter into its base model, and verify that both give the same outputs.

    Example: peft merge runs/lora -o merged
    """
    several = {"--weights": weights, "--combination-type": combination_type, "--density": density}
    several |= {"--majority-sign-method": majority_sign_method, "--rank": rank, "--seed": seed, "--adapter": adapter}
    _check_number_of_runs(len(runs), several, requantize)
    how = None
    if weights is not None:
        shares = _numbers(weights)
        how = combination(combination_type, shares, len(runs), density, majority_sign_method, rank, seed)
    options = {"--output": output, "--dtype": dtype, "--base": base, "--max-shard-size": max_shard_size}
    options |= {"--no-verify": not verify, "--requantize": requantize, "--checkpoint": checkpoint}
    options |= {"--trust-remote-code": trust_remote_code, "--quiet": quiet, "--json": as_json}
    if adapter:
        _refuse_for_adapter(dtype, max_shard_size, num_processes)
    share_among(num_processes, "merge", runs, options | several)

    told = _Told(quiet)
    merged = partial(_asked(runs, output, how, requantize, adapter), base=base, trust_code=trust_remote_code)
    merged = partial(merged, checkpoint=checkpoint, verify=verify, note=told)
    report = merged() if adapter else merged(dtype=dtype, max_shard_size=max_shard_size)
    for text in report.notes:
        told(text)
    _show(report, as_json)


def _asked(
    runs: list[Path], output: Path, how: Combination | None, requantize: bool, adapter: bool
) -> partial[MergeReport]:
    """Return what merges one run, or several into a model or an adapter."""
    with large_imports():
        from peftcli.merging.merge_run import merge_run, merge_runs

    if how is None:
        return partial(merge_run, runs[0], output, requantize=requantize)
    if adapter:
        from peftcli.merging.several.adapter_run import combine_to_adapter

        return partial(combine_to_adapter, runs, output, how)
    return partial(merge_runs, runs, output, how=how)


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


def _check_number_of_runs(runs: int, several: Mapping[str, object], requantize: bool) -> None:
    """Refuse options that do not go with one run, or with several.

    Args:
        runs: how many there are.
        several: the options for several runs, by name.
        requantize: as given.
    """
    given = [option for option, value in several.items() if value is not None and value is not False]
    if runs == 1 and given:
        raise UserError(
            f"{', '.join(given)}: for several runs",
            suggestion=f"name two runs or more; peft export RUN --to {PLAIN_LORA} reduces one run to a rank",
        )
    if runs > 1 and several["--weights"] is None:
        raise UserError(f"{runs} runs need --weights, one for each", suggestion=f"add --weights {_even(runs)}")
    if runs > 1 and requantize:
        raise UserError("--requantize is for one run", suggestion="merge several without it")


def _refuse_for_adapter(dtype: str, max_shard_size: str, num_processes: int | None) -> None:
    """Refuse options of a merged model where an adapter is written."""
    given = {"--dtype": dtype != "auto", "--max-shard-size": max_shard_size != "5GB"}
    given["--num-processes"] = num_processes is not None
    for option, wanted in given.items():
        if wanted:
            raise UserError(f"{option} does not go with --adapter", suggestion=f"leave {option} out")


def _even(runs: int) -> str:
    return ",".join([f"{1 / runs:.2g}"] * runs)


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--weights {text!r} is not a list of numbers", suggestion="write them as 0.7,0.3") from None


def _print(report: MergeReport, console: Console) -> None:
    from peftcli.record.shown_numbers import byte_size, figures

    if report.adapter:
        changed = f"a LoRA at {report.changed} modules; `method.init_from`, export and merge take this run"
    else:
        changed = f"{report.changed} of {report.tensors} tensors changed"
    console.print(f"{report.output}: {byte_size(report.size)} in {report.written_in}, {changed}", markup=False)
    if report.verified:
        found = (report.max_abs_diff, report.mean_abs_diff, report.tolerance)
        most, mean, tolerance = (figures(value or 0.0, 2) for value in found)
        before = "" if report.requantized is None else ", before it was quantised again"
        console.print(
            f"verified on {report.rows} rows{before}: {report.agreement:.1%} of the predictions agree; the outputs "
            f"differ by {most} at most, {mean} on average (tolerance {tolerance})"
        )
    else:
        console.print("not verified")
    if report.requantized is not None:
        console.print(f"quantised again, {report.requantized['agreement']:.1%} of the predictions agree")
    if report.quantization_agreement is not None:
        console.print(f"agreement with the quantised base that it was trained on: {report.quantization_agreement:.1%}")
