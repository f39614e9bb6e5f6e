"""`peft inspect-adapter RUN`: what was changed where, how much of the rank was used, and which rank to try next."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from peftcli.console.options import CheckpointName, Json, TrustRemoteCode, note
from peftcli.console.progress_bar import with_progress
from peftcli.console.terminal import say
from peftcli.process_state import large_imports
from peftcli.record.shown_numbers import figures
from peftcli.shown_text import some_of

if TYPE_CHECKING:
    from peftcli.analysis.adapter_view import AdapterView
    from peftcli.analysis.module_change import ModuleChange

_SHOWN = 6
"""Rows of a table that are named."""


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("inspect-adapter", short_help="Show what an adapter changed, and where.")(
        with_progress(inspect_adapter)
    )


def inspect_adapter(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="A run, or an adapter directory of this project or HF peft."),
    ],
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Write a picture (SVG) to this file.")
    ] = None,
    checkpoint: CheckpointName = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
) -> None:
    """Show per module how much an adapter changed, its singular values, and whether the rank is too high or too low.

    Example: peft inspect-adapter runs/lora --plot lora.svg
    """
    _refuse_other_kinds(plot)

    with large_imports():
        from peftcli.analysis.adapter_view import view_adapter
        from peftcli.analysis.rank_verdict import judge

    view = view_adapter(run, trust_remote_code, checkpoint)
    verdict = judge(view.rows, view.params)
    if plot is not None:
        _write_plot(plot, view, run)
    for text in view.notes:
        note(text)
    if as_json:
        from peftcli.console.output import print_json

        modules = [row.as_dict() for row in view.rows]
        print_json(
            {"method": view.params.name, "modules": modules, "verdict": verdict.as_dict(), "notes": list(view.notes)}
        )
    else:
        _print(view)
        say(verdict.line(), result=True)


def _refuse_other_kinds(plot: Path | None) -> None:
    from peftcli.errors import UserError

    if plot is not None and plot.suffix.lower() != ".svg":
        raise UserError(f"--plot {plot}: the picture is an SVG file", suggestion=f"name it {plot.with_suffix('.svg')}")


def _write_plot(file: Path, view: AdapterView, run: Path) -> None:
    from peftcli.analysis.adapter_plot import adapter_svg
    from peftcli.atomic import new_file

    drawn = adapter_svg(view.rows, run.resolve().name)
    with new_file(file, instead="choose another --plot") as stream:
        stream.write(drawn)
    note(f"the picture is in {file}")


def _print(view: AdapterView) -> None:
    from peftcli.console.output import print_table, result_console, table

    console = result_console()
    ranked = [row for row in view.rows if row.spectrum is not None]
    if ranked:
        headings = ["module", "shape", "change", "of weight", "r", "eff. rank", "used", "90%", "99%", "last/first"]
        console.print("low-rank changes (90%, 99%: how many singular values hold this share of the energy)")
        print_table(console, table(headings, [_ranked(row) for row in ranked], numeric=range(2, 10)))
        print()
    if any(row.magnitude for row in ranked):
        cells = [[row.name, *(f"{value:.3f}" for value in row.magnitude)] for row in ranked if row.magnitude]
        console.print("magnitudes over the weight's own row norms")
        print_table(console, table(["module", "least", "mean", "largest"], cells, numeric=range(1, 4)))
        print()
    others = [row for row in view.rows if row.spectrum is None]
    if others:
        console.print("other changes (Frobenius norms)")
        cells = [_other(row) for row in others]
        print_table(console, table(["module", "shape", "change", "of weight", "saved tensors"], cells, numeric=(2, 3)))
        print()


def _ranked(row: ModuleChange) -> list[str]:
    spectrum = row.spectrum
    assert spectrum is not None  # the caller's choice of rows
    allotted = row.allotted or 0
    rank = f"{row.kept} of {allotted}" if (row.kept or 0) < allotted else str(allotted)
    return [
        row.name + (" (before its gate)" if row.gated else ""),
        _shape(row),
        _number(row.change),
        _share(row.relative),
        rank,
        f"{spectrum.effective_rank:.1f}",
        f"{spectrum.effective_rank / row.room:.0%}" if row.room else "",
        str(spectrum.rank_of_energy(0.9)),
        str(spectrum.rank_of_energy(0.99)),
        f"{spectrum.flatness:.2g}",
    ]


def _other(row: ModuleChange) -> list[str]:
    tensors = ", ".join(f"{name} {figures(value)}" for name, value in row.tensors.items())
    return [row.name + _rows(row), _shape(row), _number(row.change), _share(row.relative), tensors]


def _rows(row: ModuleChange) -> str:
    return f" (rows {some_of(row.rows, _SHOWN)})" if row.rows else ""


def _shape(row: ModuleChange) -> str:
    return " x ".join(map(str, row.shape or ()))


def _number(value: float | None) -> str:
    return "" if value is None else figures(value)


def _share(value: float | None) -> str:
    return "" if value is None else f"{figures(100 * value)}%"
