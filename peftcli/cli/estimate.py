"""`peft estimate RECIPE [key=value ...]`: memory and time of a run, before it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from peftcli.console.options import Json, Overrides, RecipePath, TrustRemoteCode, note
from peftcli.errors import UserError

if TYPE_CHECKING:
    from peftcli.analysis.estimate.memory_options import Option
    from peftcli.analysis.estimate.memory_parts import Estimate
    from peftcli.recipe.load_recipe import LoadedRecipe


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("estimate", short_help="Tell a run's memory and time before it.")(estimate)


def estimate(
    recipe: RecipePath,
    overrides: Overrides = None,
    memory: Annotated[
        str | None,
        typer.Option("--memory", metavar="SIZE", help="Show which settings fit into this memory, such as 24GB."),
    ] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Take two real steps; needs weights and data.")] = False,
    num_processes: Annotated[
        int, typer.Option("--num-processes", metavar="N", min=1, help="Processes that share the work.")
    ] = 1,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
) -> None:
    """Estimate the memory of each device and the time of a run, without weights; with data, from its real rows.

    Example: peft estimate configs/lora.yaml training.per_device_train_batch_size=32 --memory 2GB
    """
    from peftcli.console.output import print_json
    from peftcli.models.own_code import with_allowed_code
    from peftcli.names import NAMES
    from peftcli.recipe.load_recipe import TRUST_REMOTE_CODE, load_recipe
    from peftcli.record.shown_numbers import bytes_of

    limit = None if memory is None else bytes_of("--memory", memory)
    changes = [*(overrides or []), *([TRUST_REMOTE_CODE] if trust_remote_code else [])]
    loaded = with_allowed_code(load_recipe(recipe, changes, NAMES, need_data=measure))
    found, choices = _measured(loaded, recipe, changes) if measure else (None, [])
    if found is None or limit is not None:
        from peftcli.analysis.estimate.estimating import estimate as estimated
        from peftcli.analysis.estimate.estimating import read_basis
        from peftcli.analysis.estimate.memory_options import options

        basis = read_basis(loaded)
        choices = [] if limit is None else options(basis, limit, num_processes)
        found = found or estimated(basis, processes=num_processes)
    if as_json:
        chosen = {} if limit is None else {"memory": limit, "options": [vars(option) for option in choices]}
        print_json({**found.as_dict(), **chosen})
        return
    for text in found.notes:
        note(text)
    _print(found)
    if limit is not None:
        _print_options(choices, limit)


def _measured(loaded: LoadedRecipe, recipe: Path, changes: list[str]) -> tuple[Estimate, list[Option]]:
    """Take two steps in a process of their own."""
    if loaded.recipe.data is None:
        raise UserError("--measure needs rows, and the recipe has no data block", suggestion="add data.path=FILE")
    from peftcli.analysis.estimate.measured_run import measure
    from peftcli.analysis.estimate.memory_parts import Device, Estimate

    took = measure(recipe, changes)
    rate = took["tokens_per_second"]
    seconds = took["tokens"] / rate if rate else None
    device = Device(int(took["peak_memory_bytes"]), {})
    return Estimate("measured", [device], seconds, bool(took["recomputes"])), []


def _print(found: Estimate) -> None:
    from peftcli.console.output import print_table, result_console, table
    from peftcli.record.shown_numbers import byte_size, duration

    device = found.devices[0]
    rows: list[list[str]] = [[part, byte_size(size)] for part, size in device.parts.items() if size]
    several = f" of each of {len(found.devices)} devices" if len(found.devices) > 1 else ""
    rows.append([f"peak{several}", byte_size(device.peak_memory_bytes)])
    basis = {"config": "rows of max_length", "data": "the recipe's rows", "measured": "two real steps"}
    print_table(result_console(), table([f"from {basis[found.tier]}", "memory"], rows, numeric=[1]))
    time = "unknown until --measure has timed steps here" if found.seconds is None else duration(found.seconds)
    print(f"time: {time}; gradient checkpointing: {'on' if found.recomputes else 'off'}")


def _print_options(choices: list[Option], limit: int) -> None:
    from peftcli.console.output import print_table, result_console, table
    from peftcli.record.shown_numbers import byte_size

    rows = [
        [each.overrides or "as it is", byte_size(each.peak), byte_size(each.saves), "yes" if each.fits else "no"]
        for each in choices
    ]
    print_table(result_console(), table(["overrides", "peak", "saves", "fits"], rows, numeric=[1, 2]))
    least = min(choices, key=lambda option: option.peak)
    fitting = [option for option in choices if option.fits]
    if fitting:
        print(f"use: {fitting[0].overrides or 'the recipe as it is'}")
    else:
        print(f"nothing fits into {byte_size(limit)}; nearest: {least.overrides} ({byte_size(least.peak)})")
