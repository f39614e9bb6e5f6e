"""`peft report RUN_OR_STUDY`: one HTML page of a run, a comparison or a sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from peftcli.console.options import refuse_directory
from peftcli.console.progress_bar import with_progress
from peftcli.console.terminal import wrote


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("report", short_help="Write one HTML page about a run or a study.")(with_progress(report))


def report(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN_OR_STUDY",
            help="A directory that `peft train`, `peft compare` or `peft sweep` wrote.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="File for the page; by default report.html in the directory.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write one HTML page with curves, samples, counts, data, settings and versions. It loads nothing from the network.

    For a study, the report is also written as Markdown beside the page, and its plots as SVG files in plots/.

    Example: peft report runs/lora
    """
    if output is not None:
        refuse_directory(output, "--output")

    from peftcli.studies.report.written_report import report_of

    for file in report_of(run, output):
        wrote(file)
