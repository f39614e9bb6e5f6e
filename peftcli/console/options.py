"""The arguments and options that several commands share, so that they read the same everywhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from peftcli.console.completions import complete_checkpoint, complete_override
from peftcli.console.terminal import say
from peftcli.errors import UserError

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe: a YAML file.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="Changes to the recipe by dotted path: method.r=16.",
        show_default=False,
        autocompletion=complete_override,
    ),
]
RunPath = Annotated[
    Path, typer.Argument(metavar="RUN", help="The directory that `peft train` left.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output, nothing else.")]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print no progress and no notes, only errors and the result.")
]
BaseDtype = Annotated[
    Literal["float32", "bfloat16", "float16"] | None,
    typer.Option(
        "--base-dtype",
        help="Load the base in this dtype instead of that of training; results differ.",
        show_default=False,
    ),
]


TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Run the Python code that comes with the model. The setting in a run's own recipe.yaml is ignored.",
    ),
]


CheckpointName = Annotated[
    str | None,
    typer.Option(
        "--checkpoint",
        metavar="STEP",
        help="Use a checkpoint, also of an unfinished run: step-200, last, or best (the best evaluation so far).",
        show_default=False,
        autocompletion=complete_checkpoint,
    ),
]


MaxNewTokens = Annotated[
    int | None,
    typer.Option(
        "--max-new-tokens",
        metavar="N",
        min=1,
        help="Maximum length of a generated text in tokens, instead of the recipe's.",
        show_default=False,
    ),
]


def refuse_directory(output: Path, option: str) -> None:
    """Refuse a directory where a file is to be written, before anything is computed."""
    if output.is_dir():
        raise UserError(f"{option} {output} is a directory", suggestion=f"name a file in it: {output / 'NAME'}")


def refuse_taken(output: Path, option: str) -> None:
    """Refuse a file that exists where a new one is to be written, before anything is computed."""
    refuse_directory(output, option)
    if output.exists():
        raise UserError(f"{option} {output} exists", suggestion="choose another file with -o, or remove it")


def refuse_nothing(text: str, option: str) -> None:
    """Refuse an option whose value is empty, as an unset variable of a shell leaves it."""
    if not text.strip():
        raise UserError(f"{option} is empty", suggestion=f"give {option} a value, or leave it out")


@contextmanager
def about_option(option: str) -> Iterator[None]:
    """Name the option where the library names the recipe's key: the rows came from the command line."""
    try:
        yield
    except UserError as error:
        raise UserError(
            replace(problem, key=None, message=f"{option}: {problem.message}")
            if problem.key == "data.path" and problem.file is None
            else problem
            for problem in error.problems
        ) from error


def note(text: str) -> None:
    """Show one sentence that the user should read, on standard error; of several processes the main one does."""
    from peftcli.distributed.launching import is_main_process

    if is_main_process():
        say(f"note: {text}")
