"""Using what was trained: evaluate a run or a recipe's base, predict with one run or several."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from peftcli.assembly.outline import outline
from peftcli.assembly.precision import pick_device
from peftcli.data.prepare import prepare_for_evaluation, prepare_for_prediction
from peftcli.distributed.processes import World
from peftcli.errors import UserError
from peftcli.inference.open_run import Bases, OpenedRun, open_run, opened
from peftcli.models.load.load_model import load_model
from peftcli.models.load.tokenizers import fit_to_tokenizer
from peftcli.models.read_anatomy import read_anatomy
from peftcli.names import NAMES
from peftcli.protocol.attachment import Attachment
from peftcli.recipe.load_recipe import LoadedRecipe, load_recipe
from peftcli.recipe.schema import DataSpec, DTypeName, Recipe
from peftcli.training.setup import prepare_data

__all__ = ["OpenedRun", "evaluate_run", "open_run", "predict_run", "predict_runs"]

Note = Callable[[str], None]


def evaluate_run(
    path: Path | str, data: str | None = None, base_dtype: DTypeName | None = None, note: Note = lambda _text: None
) -> dict[str, Any]:
    """Return `eval_*` metrics of a run, or of a recipe's untrained base.

    Args:
        path: a run directory or a recipe.
        data: labelled rows to use instead of the validation rows.
        note: receives what the user should know, such as another base dtype than in training.

    Raises:
        UserError: nothing to evaluate on, or anything about run, recipe or data is wrong.
    """
    path = Path(path)
    if not path.exists() and path.suffix not in (".yaml", ".yml"):
        raise UserError(f"there is no run directory and no recipe {path}", suggestion="name one of the two")
    if not path.is_dir():
        return _evaluate_recipe(load_recipe(path, [], NAMES), data, base_dtype)
    run = open_run(path, base_dtype)
    for text in run.notes:
        note(text)
    recipe = run.recipe
    if data is not None:
        rows = prepare_for_evaluation(
            data, data_spec(recipe, run.task.settings.positions), recipe.task, run.tokenizer, run.labels
        )
        return run.evaluate({"": rows})
    anatomy = read_anatomy(run.model, recipe.model.anatomy)
    prepared = prepare_data(run.loaded, run.tokenizer, anatomy, run.world)
    return run.evaluate(_with_rows(prepared.validation, path))


def _evaluate_recipe(loaded: LoadedRecipe, data: str | None, base_dtype: DTypeName | None) -> dict[str, Any]:
    recipe = loaded.recipe
    world = World(pick_device(recipe.training.device))
    known = outline(loaded, world.device)
    prepared = prepare_data(loaded, known.tokenizer, known.anatomy, world)
    spec = known.spec.model_copy(update={"dtype": base_dtype}) if base_dtype else known.spec
    base = load_model(spec, recipe.task, labels=prepared.labels, device=world.device, seed=recipe.seed)
    fit_to_tokenizer(base.model, known.tokenizer, seed=recipe.seed)
    run = opened(loaded, known.tokenizer, Attachment(base.model), prepared.labels, base, world, [])
    if data is not None:
        rows = prepare_for_evaluation(
            data, data_spec(recipe, run.task.settings.positions), recipe.task, known.tokenizer, prepared.labels
        )
        return run.evaluate({"": rows})
    return run.evaluate(_with_rows(prepared.validation, loaded.path))


def _with_rows(sets: dict[str, Any], where: Path | str) -> dict[str, Any]:
    filled = {name: rows for name, rows in sets.items() if len(rows)}
    if not filled:
        raise UserError(f"{where} has no validation rows", suggestion="name labelled rows with --data FILE")
    return filled


def data_spec(recipe: Recipe, positions: int | None = None) -> DataSpec:
    """Return the recipe's data block, rows cut to the positions that the model has, as in training."""
    spec = recipe.data or DataSpec()
    return spec if positions is None else spec.model_copy(update={"max_length": min(spec.max_length, positions)})


def predict_run(
    run: Path | str, data: str, base_dtype: DTypeName | None = None, note: Note = lambda _text: None
) -> Iterator[dict[str, Any]]:
    """Return predictions for a file, a row for each of its rows in order.

    Args:
        run: a run directory.
        data: any data file of the task's format; labels may be absent.
        note: receives what the user should know.

    Raises:
        UserError: anything about the run or the file is wrong; raised here, before the first prediction.
    """
    opened_run = open_run(run, base_dtype)
    for text in opened_run.notes:
        note(text)
    return _predict(opened_run, data)


def predict_runs(
    runs: Sequence[Path | str], data: str, base_dtype: DTypeName | None = None, note: Note = lambda _text: None
) -> Iterator[dict[str, Any]]:
    """Yield predictions of several runs for one file, each with `run`; a base that they share is loaded once.

    Args:
        runs: run directories, in the order of the output: all rows of the first, then all of the second, ...
        data: as in `predict_run`.

    Raises:
        UserError: anything about a run or the file is wrong.
    """
    bases = Bases()
    for run in runs:
        opened_run = open_run(run, base_dtype, bases)
        for text in opened_run.notes:
            note(f"{run}: {text}")
        for row in _predict(opened_run, data):
            yield {"run": str(run), **row}
        opened_run.close()


def _predict(run: OpenedRun, data: str) -> Iterator[dict[str, Any]]:
    recipe = run.recipe
    rows = prepare_for_prediction(data, data_spec(recipe, run.task.settings.positions), recipe.task, run.tokenizer)
    stops = end_of_turn(run.tokenizer, rows)
    if stops:
        run.task.settings = replace(run.task.settings, stop_ids=stops)
    return run.predict(rows)


def end_of_turn(tokenizer: Any, rows: Any) -> tuple[int, ...]:
    """Return the token with which the rows' chat template ends a turn, if it is one."""
    turn = rows.store.meta.get("end_of_turn")
    number = tokenizer.convert_tokens_to_ids(turn) if turn else None
    return (number,) if isinstance(number, int) and number != tokenizer.unk_token_id else ()
