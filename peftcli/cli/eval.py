"""`peft eval RUN_OR_RECIPE`: the metrics of a run, or of a recipe's untrained base."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from peftcli.console.options import (
    BaseDtype,
    CheckpointName,
    Json,
    MaxNewTokens,
    TrustRemoteCode,
    about_option,
    note,
    refuse_nothing,
)
from peftcli.console.progress_bar import with_progress
from peftcli.console.several_processes import NumProcesses, refuse_shared_input, share_among
from peftcli.console.standard_input import rows_file
from peftcli.process_state import large_imports


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("eval", short_help="Evaluate a run, or a recipe's untrained base.")(with_progress(evaluate))


def evaluate(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN_OR_RECIPE",
            help="A run, a directory with a complete model (with --data), or a recipe to evaluate its untrained base.",
            show_default=False,
        ),
    ],
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="FILE",
            help="Labelled rows to use instead of the run's own validation rows. `-` is standard input.",
        ),
    ] = None,
    max_new_tokens: MaxNewTokens = None,
    base_dtype: BaseDtype = None,
    checkpoint: CheckpointName = None,
    num_processes: NumProcesses = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
) -> None:
    """Evaluate what was trained, on the run's own validation rows or on a file.

    Example: peft eval runs/lora --data test.jsonl
    """
    if data is not None:
        refuse_nothing(data, "--data")
        refuse_shared_input(data, "--data")

    from peftcli.console.output import print_json
    from peftcli.distributed.launching import is_main_process

    with ExitStack() as stack:
        if data is not None:
            stack.enter_context(about_option("--data"))
            data = stack.enter_context(rows_file(data, "--data"))
        options = {"--data": data, "--max-new-tokens": max_new_tokens, "--base-dtype": base_dtype}
        options |= {"--checkpoint": checkpoint, "--trust-remote-code": trust_remote_code, "--json": as_json}
        share_among(num_processes, "eval", [run], options)

        with large_imports():
            from peftcli.assembly.recipe_to_train import set_allocator
            from peftcli.inference.evaluate_run import evaluate_run
            from peftcli.inference.open_run import Opening

        set_allocator()
        opening = Opening(base_dtype, max_new_tokens, trust_remote_code, checkpoint)
        metrics = evaluate_run(run, data, note, opening)
    if not is_main_process():
        return
    if as_json:
        print_json(metrics)
    else:
        _print(run, data, metrics)


def _print(run: Path, data: str | None, metrics: dict[str, Any]) -> None:
    from peftcli.console.output import print_table, result_console, table
    from peftcli.record.shown_numbers import metric

    console = result_console()
    if console.is_terminal:
        rows_used = "its own validation rows" if data is None else f"the rows of {data}"
        console.print(f"{run}, {rows_used}", markup=False, soft_wrap=True)
    rows = [
        [name, metric(name, value) + (" s" if name.endswith("_runtime") else "")]
        for name, value in metrics.items()
        if not isinstance(value, (dict, list))
    ]
    print_table(console, table(["metric", "value"], rows, numeric=(1,)))
