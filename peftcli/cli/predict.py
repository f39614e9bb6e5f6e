"""`peft predict RUN... --input FILE`: one line of JSON for each row of a file, or for texts on the command line."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from peftcli.atomic import new_file
from peftcli.console.decoding_options import NumBeams, SamplingSeed, Temperature, TopK, TopP, decoding_words
from peftcli.console.options import (
    BaseDtype,
    CheckpointName,
    MaxNewTokens,
    TrustRemoteCode,
    about_option,
    note,
    refuse_directory,
    refuse_nothing,
)
from peftcli.console.output import json_line
from peftcli.console.progress_bar import progress_shown
from peftcli.console.several_processes import NumProcesses, refuse_shared_input, share_among
from peftcli.console.standard_input import rows_file, texts_file
from peftcli.console.terminal import data_stream, say
from peftcli.errors import UserError
from peftcli.process_state import large_imports
from peftcli.tasks.decoding import Decoding
from peftcli.write_errors import OTHER_OUTPUT

Input = Annotated[
    str | None,
    typer.Option(
        "--input",
        "-i",
        metavar="FILE",
        help="Rows in any format that training reads; labels may be absent. `-` is standard input.",
        show_default=False,
    ),
]
Text = Annotated[
    list[str] | None,
    typer.Option("--text", "-t", metavar="TEXT", help="A text instead of a file; may be repeated.", show_default=False),
]
KeepColumns = Annotated[
    bool, typer.Option("--keep-columns", help="Write the columns of each row before its prediction.")
]
BatchSize = Annotated[
    int | None,
    typer.Option("--batch-size", metavar="N", min=1, help="Rows per batch, instead of the recipe's number."),
]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("predict", short_help="Write a prediction for each row of a file.")(predict)


def predict(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Runs, directories with a complete model, or a recipe (for its untrained base).",
            show_default=False,
        ),
    ],
    data: Input = None,
    text: Text = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="JSON Lines file to write, instead of standard output."),
    ] = None,
    keep_columns: KeepColumns = False,
    max_new_tokens: MaxNewTokens = None,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    num_beams: NumBeams = 1,
    seed: SamplingSeed = 0,
    batch_size: BatchSize = None,
    base_dtype: BaseDtype = None,
    checkpoint: CheckpointName = None,
    num_processes: NumProcesses = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Write a prediction for each row, in order, as JSON Lines with `prediction` and `scores`.

    `truncated` (true) marks a row longer than the run's max_length. `finish_reason` of a generated text is `stop`, or
    `length` if it reached the limit. There is one tag for each word of `tokens`; it is null if the word has no token or
    was truncated. With several runs, each line also has `run`: all rows of the first run come first, then the second's.

    Example: peft predict runs/lora --input new.jsonl -o predictions.jsonl
    """
    _check(runs, data, text, output)

    from peftcli.distributed.launching import is_main_process

    decoding = Decoding(temperature, top_p, top_k, num_beams)
    with about_option("--input"), texts_file(text) if text else rows_file(data or "", "--input") as file:
        shared: dict[str, object] = {"--input": file, "--output": output, "--max-new-tokens": max_new_tokens}
        shared |= {"--base-dtype": base_dtype, "--checkpoint": checkpoint, "--trust-remote-code": trust_remote_code}
        shared |= decoding_words(decoding) | {"--seed": seed or None, "--batch-size": batch_size}
        share_among(num_processes, "predict", runs, shared | {"--keep-columns": keep_columns})
        with progress_shown(quiet=not is_main_process()) as bar:
            with large_imports():
                from peftcli.assembly.recipe_to_train import set_allocator
                from peftcli.inference.open_run import Opening
                from peftcli.inference.opened_run import Predicting
                from peftcli.inference.predict_run import predict_run, predict_runs

            set_allocator()
            opening = Opening(base_dtype, max_new_tokens, trust_remote_code, checkpoint)
            further = (file, note, opening, Predicting(batch_size, decoding, seed, keep_columns))
            rows = predict_run(runs[0], *further) if len(runs) == 1 else predict_runs(runs, *further)
            if output is None and sys.stdout.isatty():
                bar.close()  # each line shows how far it is
            _deliver(rows, output if is_main_process() else None)


def _check(runs: list[Path], data: str | None, texts: list[str] | None, output: Path | None) -> None:
    """Refuse an input that cannot be read, and an output that cannot be written, before anything is computed."""
    if data is not None and texts:
        raise UserError("--text and --input both say what to predict", suggestion="give one of the two")
    if data is None and not texts:
        last = str(runs[-1])
        if len(runs) > 1 and not runs[-1].exists() and runs[-1].suffix == "":
            remedy = f'a text is given with --text: peft predict {runs[0]} --text "{last}"'
        else:
            remedy = 'give a file with --input FILE, standard input with `--input -`, or texts with --text "..."'
        raise UserError("there is nothing to predict", suggestion=remedy)
    if data is not None:
        refuse_nothing(data, "--input")
    if output is not None:
        refuse_directory(output, "--output")
        if data is not None and output.exists() and Path(data).exists() and output.samefile(data):
            raise UserError("--output is the --input file", suggestion="write the predictions to another file")
    refuse_shared_input(data, "--input")


def _deliver(rows: Iterable[dict[str, Any]], output: Path | None) -> None:
    """Write the predictions to a file, or to standard output for None."""
    if output is None:
        _write(rows, data_stream())
        return
    with new_file(output, instead=OTHER_OUTPUT) as stream:
        written = _write(rows, stream)
    say(f"{written} predictions in {output}")


def _write(rows: Iterable[dict[str, Any]], stream: IO[str]) -> int:
    written = 0
    for row in rows:
        stream.write(json_line(row) + "\n")
        written += 1
    return written
