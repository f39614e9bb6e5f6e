"""`peft compare RECIPE_OR_RUN...`: several methods side by side, with their error."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from peftcli.console.completions import complete_methods
from peftcli.console.options import Json, Quiet, TrustRemoteCode, refuse_nothing
from peftcli.console.progress_bar import progress_shown
from peftcli.console.study_views.study_options import Jobs, Metric, Storage, refuse_empty, typed_command
from peftcli.errors import Problem, UserError

if TYPE_CHECKING:
    from peftcli.console.study_views.compare_request import CompareRequest
    from peftcli.studies.compare.comparison import ComparedMethod, Comparison

What = Annotated[
    list[str],
    typer.Argument(
        metavar="RECIPE_OR_RUN... [KEY=VALUE]...",
        help="Recipes, or directories of runs, to compare; KEY=VALUE changes all recipes.",
        show_default=False,
    ),
]
Methods = Annotated[
    str | None,
    typer.Option(
        "--methods",
        metavar="A,B,...",
        help='Methods to compare, for a single recipe: lora,adalora,"lora:r=32".',
        autocompletion=complete_methods,
    ),
]
Budget = Annotated[
    str | None,
    typer.Option(
        "--budget", metavar="TIME", help="Time for the whole command: 90s, 40m, 1h30m; all runs are shortened."
    ),
]
Rates = Annotated[
    int,
    typer.Option(
        "--rates", metavar="N", min=1, max=9, help="Learning rates to try for each method; with 1 there is no search."
    ),
]
Seeds = Annotated[
    int, typer.Option("--seeds", metavar="N", min=1, max=99, help="How many runs of each method are scored.")
]
NoSearch = Annotated[bool, typer.Option("--no-search", help="Use the recipe's learning rate, or the method's default.")]
Reference = Annotated[
    str | None,
    typer.Option(
        "--reference", metavar="NAME", help="What to measure against: full, head, base, none, or one of the methods."
    ),
]
Output = Annotated[
    str | None,
    typer.Option(
        "--output", "-o", metavar="DIR", help="Directory of the study and its report; runs/compare-NAME by default."
    ),
]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("compare", short_help="Compare methods: train them, or use existing runs.")(compare)


def compare(
    what: What,
    methods: Methods = None,
    budget: Budget = None,
    rates: Rates = 3,
    seeds: Seeds = 3,
    no_search: NoSearch = False,
    jobs: Jobs = 1,
    reference: Reference = None,
    metric: Metric = None,
    storage: Storage = None,
    output: Output = None,
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Compare methods on the same rows: a rate search for each, fresh seeds, verdicts with their error.

    Example: peft compare configs/*.yaml --budget 40m
    """
    refuse_empty(budget=budget, output=output, metric=metric, storage=storage)
    if methods is not None:
        refuse_nothing(methods, "--methods")

    from peftcli.console.study_views.compare_request import CompareRequest, split_arguments

    paths, overrides = split_arguments(what)
    request = CompareRequest(
        paths=paths,
        overrides=overrides,
        methods=methods,
        budget=budget,
        rates=0 if no_search or rates == 1 else rates,
        seeds=seeds,
        jobs=jobs,
        reference=reference,
        metric=metric,
        storage=storage,
        output=output,
        trust_code=trust_remote_code,
        command=typed_command(storage),
    )
    comparison = _of_runs(request, quiet) if request.of_runs else _of_recipes(request, quiet)
    _report(comparison, request, as_json)


def _of_recipes(request: CompareRequest, quiet: bool) -> Comparison:
    """Train what is not trained yet, and return the record."""
    from peftcli.console.study_views.compare_request import read_request
    from peftcli.console.study_views.study_display import StudyDisplay

    with progress_shown(quiet=quiet):
        asked = read_request(request)

        from peftcli.studies.compare.compare_recipes import compare_recipes

    with StudyDisplay(asked.metric, quiet=quiet) as display:
        return compare_recipes(asked, display)


def _of_runs(request: CompareRequest, quiet: bool) -> Comparison:
    """Compare runs that exist, and return the record."""
    from peftcli.console.options import note
    from peftcli.console.study_views.compare_request import refuse_for_runs
    from peftcli.studies.compare.existing_runs import compare_runs

    refuse_for_runs(request)
    told = (lambda _text: None) if quiet else note
    with progress_shown(quiet=quiet):
        return compare_runs(request.paths, request.directory, request.reference, request.metric, request.command, told)


def _report(comparison: Comparison, request: CompareRequest, as_json: bool) -> None:
    """Write the record and its reports, and print the result.

    Raises:
        UserError: no method has a score; says why, of each.
    """
    from peftcli.console.output import print_json
    from peftcli.console.study_views.compare_view import print_comparison
    from peftcli.studies.compare.write_comparison import write_comparison

    files = write_comparison(comparison, request.directory)
    if as_json:
        print_json(comparison.as_dict())
    else:
        print_comparison(comparison, files)
    if not any(row.scores for row in comparison.methods):
        raise UserError([*map(_no_score, comparison.methods)])


def _no_score(row: ComparedMethod) -> Problem:
    """Return why a method has no score, where none has one."""
    return Problem(f"{row.label} was {row.status}: {row.reason or 'no reason is known'}")
