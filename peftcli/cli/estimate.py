"""`peft estimate RECIPE [key=value ...]`: memory and time of a run, before it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from peftcli.console.options import Json, Overrides, RecipePath, TrustRemoteCode, note
from peftcli.console.progress_bar import with_progress
from peftcli.errors import UserError
from peftcli.process_state import large_imports
from peftcli.progress import stage

if TYPE_CHECKING:
    from peftcli.analysis.estimate.memory_options import Option


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("estimate", short_help="Estimate the memory and time of a run.")(with_progress(estimate))


def estimate(
    recipe: RecipePath,
    overrides: Overrides = None,
    memory: Annotated[
        str | None,
        typer.Option("--memory", metavar="SIZE", help="Show what fits into the memory of one device, such as 24GB."),
    ] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Measure two real steps; needs weights and data.")] = False,
    num_processes: Annotated[
        int, typer.Option("--num-processes", metavar="N", min=1, help="Number of processes that share the work.")
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
    if measure and num_processes > 1:
        raise UserError("--measure works with one process only", suggestion="leave out --num-processes")
    changes = [*(overrides or []), *([TRUST_REMOTE_CODE] if trust_remote_code else [])]
    loaded = with_allowed_code(load_recipe(recipe, changes, NAMES, need_data=measure))
    if measure and loaded.recipe.data is None:
        raise UserError("--measure needs rows, and the recipe has no data block", suggestion="add data.path=FILE")

    from peftcli.analysis.estimate.measured_run import measured

    found = measured(recipe, changes) if measure else None
    with large_imports():
        from peftcli.analysis.estimate.estimating import estimate as estimated
        from peftcli.analysis.estimate.estimating import read_basis
        from peftcli.analysis.estimate.memory_options import options
        from peftcli.console.estimate_view import print_estimate, print_options

    basis = read_basis(loaded) if found is None or limit is not None else None
    if basis is not None and found is None:
        with stage("estimating"):
            found = estimated(basis, processes=num_processes)
    assert found is not None
    settings: list[Option] = []
    methods: list[Option] = []
    if basis is not None and limit is not None:
        with stage("estimating settings and methods", unit="estimates") as done:
            settings, methods = options(basis, limit, num_processes, lambda _text: done(1))
    if as_json:
        chosen = {"settings": [each.as_dict() for each in settings], "methods": [each.as_dict() for each in methods]}
        print_json({**found.as_dict(), **({} if limit is None else {"memory": limit, **chosen})})
        return
    for text in found.notes:
        note(text)
    print_estimate(found)
    if limit is not None:
        print_options(settings, methods, limit)
