"""`peft sweep RECIPE [key=value ...]`: search keys of a recipe, and train the winners again on fresh seeds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from peftcli.console.options import Json, Overrides, Quiet, RecipePath, TrustRemoteCode
from peftcli.console.progress_bar import progress_shown
from peftcli.console.study_views.study_options import Jobs, Metric, Storage, refuse_empty, typed_command
from peftcli.errors import UserError

if TYPE_CHECKING:
    from peftcli.studies.sweep.run_settings import RunSettings
    from peftcli.studies.sweep.sweep_request import SweepRequest


Grid = Annotated[
    list[str] | None,
    typer.Option(
        "--grid", metavar="KEY=VALUES", help="Try every value: method.r=4,8,16. Several grids are multiplied."
    ),
]
Search = Annotated[
    list[str] | None,
    typer.Option(
        "--search",
        metavar="KEY=RANGE",
        help="Draw from a range or a list: training.learning_rate=log:1e-5..1e-2, method.r=4..16:4, or a,b,c.",
    ),
]
SearchFile = Annotated[
    Path | None,
    typer.Option("--search-file", metavar="FILE", help="A YAML file with `search:`; keys can depend on others."),
]
Trials = Annotated[int | None, typer.Option("--trials", metavar="N", help="Trials of a search; 30 by default.")]
Sampler = Annotated[
    str | None,
    typer.Option(
        "--sampler",
        metavar="NAME",
        help="tpe, random or grid; by default grid with --grid, else tpe.",
        autocompletion=lambda: ["tpe", "random", "grid"],
    ),
]
Pruner = Annotated[
    str | None,
    typer.Option(
        "--pruner",
        metavar="NAME",
        help="Stop trials that fall behind: none, median, hyperband.",
        autocompletion=lambda: ["none", "median", "hyperband"],
    ),
]
Seeds = Annotated[int | None, typer.Option("--seeds", metavar="N", help="Fresh seeds for the winners; 3 by default.")]
Winners = Annotated[
    int | None,
    typer.Option(
        "--winners",
        metavar="N",
        help="How many of the best trials are trained again; 3 by default, or all in a grid over one number.",
    ),
]
Budget = Annotated[
    str | None,
    typer.Option(
        "--budget", metavar="TIME", help="Time for the whole command: 90s, 40m, 1h30m; fewer trials are made."
    ),
]
Output = Annotated[
    str | None,
    typer.Option("--output", "-o", metavar="DIR", help="Directory of the study; runs/sweep-RECIPE by default."),
]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("sweep", short_help="Search keys of a recipe, and say what ties with the best.")(sweep)


def sweep(
    recipe: RecipePath,
    overrides: Overrides = None,
    grid: Grid = None,
    search: Search = None,
    search_file: SearchFile = None,
    trials: Trials = None,
    sampler: Sampler = None,
    pruner: Pruner = None,
    seeds: Seeds = None,
    winners: Winners = None,
    metric: Metric = None,
    jobs: Jobs = 1,
    budget: Budget = None,
    storage: Storage = None,
    output: Output = None,
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Search keys of a recipe on the same held-out rows; report the winners' scores on fresh seeds.

    Example: peft sweep configs/lora.yaml --grid method.r=4,8,16,32
    """
    refuse_empty(budget=budget, output=output, metric=metric, storage=storage)

    from peftcli.names import NAMES
    from peftcli.recipe.load_recipe import TRUST_REMOTE_CODE
    from peftcli.studies.compare.budget.time_budget import parse_budget
    from peftcli.studies.sweep.run_settings import RunSettings
    from peftcli.studies.sweep.sweep_request import SweepOptions, prepare_sweep

    seconds = None if budget is None else parse_budget(budget)
    options = SweepOptions(grid or (), search or (), search_file, trials, sampler, pruner, seeds, winners, metric)
    changes = [*(overrides or []), *([TRUST_REMOTE_CODE] if trust_remote_code else [])]
    with progress_shown(quiet=quiet):
        request = prepare_sweep(recipe, changes, options, NAMES)
    directory = Path(output).expanduser() if output is not None else Path("runs") / f"sweep-{recipe.stem}"
    settings = RunSettings(directory, storage, jobs, seconds, typed_command(storage))
    _run(request, settings, quiet=quiet, as_json=as_json)


def _run(request: SweepRequest, settings: RunSettings, *, quiet: bool, as_json: bool) -> None:
    from peftcli.console.output import print_json
    from peftcli.console.study_views.study_display import StudyDisplay
    from peftcli.console.study_views.sweep_view import print_sweep
    from peftcli.studies.sweep.run_sweep import run_sweep

    with StudyDisplay(request.metric, quiet=quiet) as display:
        found = run_sweep(request, settings, display)
    if as_json:
        print_json(found.as_dict())
    else:
        print_sweep(found, settings.directory)
    if found.best is None:
        reasons = [one.reason for one in found.winners] + [one.reason for one in found.trials]
        told = list(dict.fromkeys(reason for reason in reasons if reason))
        raise UserError(
            f"no trial has a result: {'; '.join(told[:3]) or 'none was run'}",
            suggestion=f"see {settings.directory / 'report.md'} for each trial's reason",
        )
