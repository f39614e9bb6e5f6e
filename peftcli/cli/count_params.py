"""`peft count-params`: how many parameters methods train, from the model's config alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from peftcli.console.completions import complete_method, complete_task
from peftcli.console.method_text import method_overrides
from peftcli.console.options import Json, TrustRemoteCode, note
from peftcli.console.progress_bar import with_progress
from peftcli.errors import Problem, UserError
from peftcli.process_state import large_imports

if TYPE_CHECKING:
    from peftcli.recipe.load_recipe import LoadedRecipe


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("count-params", short_help="Compare what methods train and save.")(with_progress(count_params))


def count_params(
    recipes: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[RECIPE|RUN]...", help="Recipes or runs to compare.", show_default=False),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="M", help="Hub id, directory (a config.json is enough) or package:NAME/PATH."),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option("--task", metavar="T", help="The task, with --model.", autocompletion=complete_task),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            metavar="NAME[:KEY=VALUE,...]",
            help="A method, with --model; may be repeated.",
            autocompletion=complete_method,
        ),
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
) -> None:
    """Compare how many parameters methods train, save and add, without loading any weights.

    A finished run is counted as it was trained: with the ranks that EVA chose and the labels of its rows.

    Example: peft count-params --model gpt2 --task causal_lm --method lora:r=8,target_modules=[attn.q,attn.v]
    """
    from peftcli.console.output import print_json
    from peftcli.recipe.checks.method_checks import methods_of

    loaded = _recipes(recipes or [], model, task, method or [], trust_remote_code)

    with large_imports():
        from peftcli.analysis.counting import count_params as count

    rows = [count(each.recipe).as_dict() for each in loaded]
    if not as_json and any(
        row["head"] and each.recipe.model.num_labels is None for each, row in zip(loaded, rows, strict=True)
    ):
        note("heads are counted for 2 labels, since the data are not read: set model.num_labels to their number")
    for each in loaded:
        for _, params in methods_of(each.recipe.method) if not (as_json or Path(each.path).is_dir()) else ():
            if (why := params.open_sizes()) is not None:
                note(
                    f"{params.name}: {why}; counted with the ranks of the recipe. Name a finished run to count its own"
                )
    if as_json:
        print_json(rows)
    else:
        _print([each.path for each in loaded], rows)


def _recipes(
    files: list[Path], model: str | None, task: str | None, methods: list[str], trust_code: bool
) -> list[LoadedRecipe]:
    with large_imports():
        from peftcli.analysis.counted_run import counted_run
    from peftcli.models.own_code import with_allowed_code
    from peftcli.names import NAMES
    from peftcli.recipe.load_recipe import TRUST_REMOTE_CODE, load_recipe, recipe_from_overrides

    named = {"--model": model, "--task": task, "--method": methods}
    given = [option for option, value in named.items() if value]
    if given and len(given) < len(named):
        missing = " and ".join(option for option in named if option not in given)
        raise UserError(
            f"{given[0]} needs {missing} too", suggestion="--model M --task T --method NAME[:key=value,...]"
        )
    if not files and not given:
        raise UserError("nothing to count", suggestion="name recipes, or --model M --task T --method NAME")
    typed = [TRUST_REMOTE_CODE] if trust_code else []
    problems: list[Problem] = []
    loaded = []
    for file in files:
        try:
            if file.is_dir():
                loaded.append(counted_run(file, trust_code))
            else:
                loaded.append(with_allowed_code(load_recipe(file, typed, NAMES, need_data=False)))
        except UserError as error:
            problems += error.problems
    for text in methods:
        changes = [
            f"model.name_or_path={_quoted(str(model))}",
            f"task={_quoted(str(task))}",
            *method_overrides(text),
            *typed,
        ]
        try:
            loaded.append(recipe_from_overrides(f"--method {text}", changes, NAMES))
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(dict.fromkeys(problems))
    return loaded


def _quoted(text: str) -> str:
    """Return text as a double-quoted YAML string, so that it stays text whatever it looks like."""
    import json

    return json.dumps(text)


def _print(names: list[str], rows: list[dict[str, Any]]) -> None:
    from peftcli.console.output import print_table, result_console, table
    from peftcli.record.shown_numbers import byte_size, count, short_count

    cells = [
        [
            name.removeprefix("--method "),
            row["method"],
            count(row["trainable"]),
            f"{row['percent']:.3f}%",
            count(row["saved"]),
            byte_size(4 * row["saved"]),
            count(row["head"]),
            short_count(row["total"]),
            f"{row['reduction']:,.0f}x" if row["reduction"] else "",
        ]
        for name, row in zip(names, rows, strict=True)
    ]
    headings = ["", "method", "trainable", "of total", "saved", "in float32", "head", "total", "fewer than full"]
    print_table(result_console(), table(headings, cells, numeric=range(2, 9)))
