"""What `peft compare` and `peft sweep` share: options, and the command as a report shows it."""

from __future__ import annotations

import shlex
import sys
from typing import Annotated

import typer

from peftcli.console.options import refuse_nothing

Jobs = Annotated[int, typer.Option("--jobs", metavar="N", min=1, help="How many runs train at once.")]
Metric = Annotated[
    str | None,
    typer.Option("--metric", metavar="NAME", help="Metric that gives the score, instead of metric_for_best_model."),
]
Storage = Annotated[
    str | None, typer.Option("--storage", metavar="URL", help="Database for the study's trials, shared by machines.")
]


def refuse_empty(*, budget: str | None, output: str | None, metric: str | None, storage: str | None) -> None:
    """Refuse an option that was given an empty value.

    Raises:
        UserError: one was.
    """
    given = {"--budget": budget, "--output": output, "--metric": metric, "--storage": storage}
    for option, value in given.items():
        if value is not None:
            refuse_nothing(value, option)


def typed_command(storage: str | None) -> str:
    """Return the command as it was typed, for the report, which others read: without the password of `storage`."""
    from peftcli.studies.engine.storage import without_password

    words = sys.argv[1:]
    if storage is not None:
        words = [word.replace(storage, without_password(storage)) for word in words]
    return shlex.join(["peft", *words])
