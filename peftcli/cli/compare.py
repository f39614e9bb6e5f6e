"""`peft compare RECIPE_OR_RUN...`: several methods side by side, with their error."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from peftcli.console.options import Json, Quiet, TrustRemoteCode, refuse_nothing
from peftcli.errors import Problem, UserError

if TYPE_CHECKING:
    from peftcli.console.compare_request import CompareRequest
    from peftcli.studies.compare.comparison import ComparedMethod, Comparison


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("compare", short_help="Train several methods, or take their runs, and compare them.")(compare)


def compare(
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE_OR_RUN... [KEY=VALUE]...",
            help="Recipes, or directories of runs, to compare; KEY=VALUE changes all recipes.",
            show_default=False,
        ),
    ],
    methods: Annotated[
        str | None,
        typer.Option("--methods", metavar="A,B,...", help='Methods for one recipe: lora,adalora,"lora:r=32".'),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option("--budget", metavar="TIME", help="Time for everything: 90s, 40m, 1h30m; runs are shortened."),
    ] = None,
    rates: Annotated[
        int, typer.Option("--rates", metavar="N", min=1, max=9, help="Learning rates to try for each method.")
    ] = 3,
    seeds: Annotated[int, typer.Option("--seeds", metavar="N", min=1, max=99, help="Scoring runs of each method.")] = 3,
    no_search: Annotated[
        bool, typer.Option("--no-search", help="Take each recipe's learning rate, or its method's default.")
    ] = False,
    jobs: Annotated[int, typer.Option("--jobs", metavar="N", min=1, help="Runs at a time.")] = 1,
    reference: Annotated[
        str | None,
        typer.Option("--reference", metavar="NAME", help="What to measure against: full, head, base, none, a label."),
    ] = None,
    metric: Annotated[
        str | None, typer.Option("--metric", metavar="NAME", help="What scores are, instead of metric_for_best_model.")
    ] = None,
    storage: Annotated[
        str | None, typer.Option("--storage", metavar="URL", help="Where several machines share the study's trials.")
    ] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="DIR", help="Directory of the study and its report.")
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Compare methods on the same rows: a rate search for each, fresh seeds, verdicts with their error.

    Example: peft compare configs/*.yaml --budget 40m
    """
    for option, value in {"--methods": methods, "--budget": budget, "--output": output, "--metric": metric}.items():
        if value is not None:
            refuse_nothing(value, option)

    from peftcli.console.compare_request import CompareRequest, split_arguments

    paths, overrides = split_arguments(what)
    request = CompareRequest(
        paths=paths,
        overrides=overrides,
        methods=methods,
        budget=budget,
        rates=0 if no_search else rates,
        seeds=seeds,
        jobs=jobs,
        reference=reference,
        metric=metric,
        storage=storage,
        output=output,
        trust_code=trust_remote_code,
        command=shlex.join(["peft", *sys.argv[1:]]),
    )
    comparison = _of_runs(request, quiet) if request.of_runs else _of_recipes(request, quiet)

    from peftcli.console.compare_view import print_comparison
    from peftcli.console.output import print_json
    from peftcli.studies.compare.write_comparison import write_comparison

    files = write_comparison(comparison, request.directory)
    if as_json:
        print_json(comparison.as_dict())
    else:
        print_comparison(comparison, files)
    if not any(row.scores for row in comparison.methods):
        raise UserError([*map(_no_score, comparison.methods)])


def _of_recipes(request: CompareRequest, quiet: bool) -> Comparison:
    """Train what is not trained yet, and return the record."""
    from peftcli.console.compare_display import CompareDisplay
    from peftcli.console.compare_request import read_request

    asked = read_request(request)

    from peftcli.studies.compare.compare_recipes import compare_recipes

    with CompareDisplay(asked.metric, quiet=quiet) as display:
        return compare_recipes(asked, display)


def _of_runs(request: CompareRequest, quiet: bool) -> Comparison:
    """Compare runs that exist, and return the record."""
    from peftcli.console.compare_request import refuse_for_runs
    from peftcli.console.options import note
    from peftcli.studies.compare.existing_runs import compare_runs

    refuse_for_runs(request)
    return compare_runs(
        request.paths,
        request.directory,
        request.reference,
        request.metric,
        request.command,
        note if not quiet else lambda _text: None,
    )


def _no_score(row: ComparedMethod) -> Problem:
    """Return why a method has no score, where none has one."""
    return Problem(f"{row.label} was {row.status}: {row.reason or 'no reason is known'}")
