"""`peft inspect RECIPE`: the data as the model will see it, before any training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from peftcli.console.options import Json, Overrides, RecipePath, TrustRemoteCode, refuse_directory
from peftcli.console.progress_bar import with_progress
from peftcli.console.terminal import wrote
from peftcli.process_state import large_imports


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("inspect", short_help="Show the rows as the model will see them.")(with_progress(inspect))


def inspect(
    recipe: RecipePath,
    overrides: Overrides = None,
    rows: Annotated[int, typer.Option("--rows", "-n", metavar="N", min=0, help="Training rows to show.")] = 3,
    width: Annotated[
        int | None,
        typer.Option(
            "--width", metavar="N", min=40, help="Width of the output in characters; the terminal's by default."
        ),
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write an HTML page to this file instead.")
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
) -> None:
    """Show the rows as the model will see them: tokens that are trained on, special tokens, lengths.

    Example: peft inspect configs/lora.yaml -n 2
    """
    if html is not None:
        refuse_directory(html, "--html")

    from peftcli.console.output import print_json
    from peftcli.recipe.load_recipe import TRUST_REMOTE_CODE

    typed = [TRUST_REMOTE_CODE] if trust_remote_code else []
    found = _inspect(recipe, [*(overrides or []), *typed], rows)
    if html is not None:
        from peftcli.atomic import new_file
        from peftcli.console.inspect_html import page

        with new_file(html, instead="choose another --html") as file:
            file.write(page(found, title=str(recipe)))
        wrote(html)
    if as_json:
        print_json(found.as_dict())
    elif html is None:
        from peftcli.console.inspect_view import print_inspection

        print_inspection(found, width)


def _inspect(path: Path, overrides: list[str], rows: int) -> Any:
    """Return the inspection of a recipe's data, prepared as `peft train` prepares it."""
    with large_imports():
        from peftcli.assembly.collect_problems import located
        from peftcli.assembly.positions_left import positions_left
        from peftcli.data.inspection import inspect_data
        from peftcli.data.loss_rows import as_loss_reads
        from peftcli.data.prepare import prepare
        from peftcli.models.load.load_model import load_config
        from peftcli.models.load.meta_model import build_meta
        from peftcli.models.load.tokenizers import load_tokenizer
        from peftcli.models.read_anatomy import read_anatomy
    from peftcli.errors import UserError
    from peftcli.models.own_code import with_allowed_code
    from peftcli.names import NAMES
    from peftcli.recipe.load_recipe import load_recipe

    loaded = with_allowed_code(load_recipe(path, overrides, NAMES))
    spec = loaded.recipe.data
    if spec is None:
        raise UserError(loaded.problem("data", "the recipe has no data block", "add data.path=FILE"))
    task, model = loaded.recipe.task, loaded.recipe.model
    try:
        tokenizer = load_tokenizer(model)
        meta = build_meta(load_config(model), task, trust_remote_code=model.trust_remote_code)
        anatomy = read_anatomy(meta, model.anatomy)
    except UserError as error:
        raise UserError(located(loaded, error.problems)) from error
    longest = positions_left(anatomy, loaded.recipe.method)
    spec = spec.model_copy(update={"streaming": False})  # what is read row by row can be counted all the same
    data = prepare(
        spec,
        task,
        tokenizer,
        seed=loaded.recipe.seed,
        where=loaded,
        model_max_positions=longest,
        target_positions=anatomy.max_target_positions,
        problem_type=model.problem_type,
    )
    most = min(spec.max_length, longest or spec.max_length)
    return inspect_data(as_loss_reads(data, loaded.recipe, most), tokenizer, task, rows=rows, max_length=most)
