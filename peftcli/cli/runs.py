"""`peft runs [DIR]`: the runs below a directory, and how each of them stands."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from peftcli.console.options import Json, note


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("runs", short_help="List runs: method, score, size, time, state.")(runs)


def runs(
    directory: Annotated[
        Path, typer.Argument(metavar="[DIR]", help="Directory to search for runs, at any depth.")
    ] = Path("runs"),
    as_json: Json = False,
) -> None:
    """List the runs below a directory, newest first. A study is one line; broken runs are listed, too.

    A run is finished, imported (by `peft import`), running, interrupted (`--resume` continues it), failed (ended by an
    error) or damaged.

    Example: peft runs
    """
    from peftcli.console.output import print_json, result_console
    from peftcli.console.tables.runs_table import print_runs
    from peftcli.record.listing.find_runs import find_runs

    found, studies = find_runs(directory)
    if as_json:
        document = {"directory": str(directory), "runs": [asdict(run) for run in found]}
        print_json(document | {"studies": [asdict(study) for study in studies]})
        return
    print_runs(found, studies, directory, result_console())
    if not found and not studies:
        note(f"there are no runs below {directory}; `peft train RECIPE` makes one")
    if studies:
        note(f"a study is one line; its trials: peft runs {studies[0].path}")
