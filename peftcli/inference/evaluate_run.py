"""Evaluate a run, or the untrained base of a recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from peftcli.assembly.outline import outline
from peftcli.assembly.recipe_data import prepare_data
from peftcli.data.loss_rows import rows_of_loss
from peftcli.data.other_file import said
from peftcli.data.overlap import stored_rows
from peftcli.data.prepare import prepare_for_evaluation
from peftcli.data.prepared_data import PreparedData
from peftcli.data.rows.row_set import RowSet
from peftcli.data.store.data_report import Counts
from peftcli.distributed.devices import pick_device
from peftcli.distributed.processes import World
from peftcli.errors import UserError
from peftcli.inference.complete_model import find_used, is_complete_model, refuse_checkpoint
from peftcli.inference.open_run import AS_TRAINED, FoundRun, Opening, load_run, opened, with_text_length
from peftcli.inference.opened_run import OpenedRun
from peftcli.inference.text_inputs import changed_validation
from peftcli.models.load.load_model import load_model
from peftcli.models.load.tokenizers import fit_to_tokenizer
from peftcli.models.own_code import with_allowed_code
from peftcli.models.read_anatomy import read_anatomy
from peftcli.names import NAMES
from peftcli.protocol.attachment import Attachment
from peftcli.recipe.load_recipe import TRUST_REMOTE_CODE, LoadedRecipe, load_recipe
from peftcli.recipe.preference_losses import preference_loss
from peftcli.recipe.schema import DTypeName, Recipe
from peftcli.record.random_state import random_numbers_kept
from peftcli.tasks.task_table import task_info

Note = Callable[[str], None]


def evaluate_run(
    path: Path | str,
    data: str | None = None,
    note: Note = lambda _text: None,
    opening: Opening = AS_TRAINED,
) -> dict[str, Any]:
    """Return `eval_*` metrics of a run, or of a recipe's untrained base.

    Args:
        path: a run directory, a directory with a complete model, or a recipe.
        data: labelled rows to use instead of the validation rows.
        note: receives what the user should know, such as another base dtype than in training, and rows that were cut.
        opening: how the run, model or base is opened. A recipe that is no run's may allow its model's code itself.

    Raises:
        UserError: nothing to evaluate on, or anything about run, recipe or data is wrong.
    """
    path = Path(path)
    if not path.exists() and path.suffix not in (".yaml", ".yml"):
        raise UserError(f"there is no run directory and no recipe {path}", suggestion="name one of the two")
    if not path.is_dir():
        refuse_checkpoint(opening.checkpoint, f"{path} is a recipe")
        loaded = with_allowed_code(load_recipe(path, [TRUST_REMOTE_CODE] if opening.trust_code else [], NAMES))
        return _evaluate_recipe(loaded, data, note, opening)
    if data is None and is_complete_model(path):
        remedy = "name labelled rows with --data FILE"
        raise UserError(f"{path} is a complete model, which has no validation rows of its own", suggestion=remedy)
    found = find_used(path, opening)
    if is_complete_model(path):
        _refuse_without_start(path, found.loaded.recipe)
    run = load_run(found)
    for text in run.notes:
        note(text)
    if data is not None:
        return _evaluate_file(run, data, run.trained_format, note)
    return _evaluate(run, rows_of_run(run, path, note), note)


def _evaluate(run: OpenedRun, sets: Mapping[str, RowSet], note: Note) -> dict[str, Any]:
    for text in run.cut_texts(sets):
        note(text)
    return run.evaluate(sets)


def _refuse_without_start(path: Path, recipe: Recipe) -> None:
    """Refuse to compare a complete model with the one before its training, of which nothing is left.

    Raises:
        UserError: its loss does that.
    """
    if task_info(recipe.task).rows == "preferences" and (loss := preference_loss(recipe.training)).info.reference:
        raise UserError(
            f"{path} is a complete model; the loss {loss.name} compares answers with the model before the first step",
            suggestion="name the run that it was merged from, which knows that model: peft eval RUN --data FILE",
        )


def evaluate_found(found: FoundRun, note: Note = lambda _text: None) -> dict[str, Any] | None:
    """Return `eval_*` metrics of a run on its own validation rows; None where it has none.

    Args:
        found: the run, perhaps with another adapter than its own.
        note: receives what the user should know.

    Raises:
        UserError: the data is no longer where it was.
    """
    if found.loaded.recipe.data is None:
        return None
    run = load_run(found)
    rows = {name: rows for name, rows in _held_out(run, found.directory.path, note).items() if len(rows)}
    return run.evaluate(rows) if rows else None


def rows_of_run(run: OpenedRun, path: Path, note: Note) -> dict[str, RowSet]:
    """Return a run's own validation rows, by set.

    Args:
        path: its directory.
        note: is told of rows that changed since training, and of those that were cut.

    Raises:
        UserError: there are none.
    """
    return _with_rows(_held_out(run, path, note), path, run, note)


def _held_out(run: OpenedRun, path: Path, note: Note) -> Mapping[str, RowSet]:
    """Return the validation rows that a run's recipe names, by set; there may be none."""
    if run.recipe.data is None:
        raise UserError(
            f"{path} has no rows of its own: its recipe has no data block",
            suggestion="name labelled rows with --data FILE",
        )
    anatomy = read_anatomy(run.model, run.recipe.model.anatomy)
    prepared = prepare_data(run.loaded, run.tokenizer, anatomy, run.world)
    for text in changed_validation(path, prepared.validation):
        note(text)
    return prepared.validation


def rows_of_recipe(run: OpenedRun, prepared: PreparedData, note: Note) -> dict[str, RowSet]:
    """Return a recipe's validation rows, by set, for its untrained base.

    Raises:
        UserError: there are none.
    """
    return _with_rows(prepared.validation, run.loaded.path, run, note)


def _evaluate_recipe(loaded: LoadedRecipe, data: str | None, note: Note, opening: Opening) -> dict[str, Any]:
    run, prepared = open_untrained(with_text_length(loaded, opening.max_new_tokens), opening.base_dtype)
    for text in run.notes:
        note(text)
    if data is not None:
        return _evaluate_file(run, data, prepared.report.format, note)
    return _evaluate(run, rows_of_recipe(run, prepared, note), note)


@random_numbers_kept()
def open_untrained(loaded: LoadedRecipe, base_dtype: DTypeName | None = None) -> tuple[OpenedRun, PreparedData]:
    """Return a recipe's base as it is before training, a new head drawn by the recipe's seed, and the recipe's rows.

    Raises:
        UserError: anything about the model or the data is wrong.
    """
    recipe = loaded.recipe
    world = World(pick_device(recipe.training.device))
    known = outline(loaded, world.device)
    prepared = prepare_data(loaded, known.tokenizer, known.anatomy, world)
    spec = known.spec.model_copy(update={"dtype": base_dtype}) if base_dtype else known.spec
    base = load_model(spec, recipe.task, labels=prepared.labels, device=world.device, seed=recipe.seed)
    notes = [*known.notes, *base.all_notes, *fit_to_tokenizer(base.model, known.tokenizer, seed=recipe.seed)]
    return opened(loaded, known.tokenizer, Attachment(base.model), prepared.labels, base, world, notes), prepared


def _evaluate_file(run: OpenedRun, data: str, trained_format: str | None, note: Note) -> dict[str, Any]:
    spec, task = run.data_spec, run.recipe.task
    room = run.task.settings.target_positions
    rows, notes = run.world.main_first(
        lambda: prepare_for_evaluation(data, spec, task, run.tokenizer, run.labels, trained_format, room)
    )
    for text in notes:
        note(text)
    return _evaluate(run, {"": rows_of_loss(rows, run.recipe, spec.max_length)}, note)


def _with_rows(sets: Mapping[str, RowSet], where: Path | str, run: OpenedRun, note: Note) -> dict[str, RowSet]:
    filled = {name: rows for name, rows in sets.items() if len(rows)}
    if not filled:
        raise UserError(f"{where} has no validation rows", suggestion="name labelled rows with --data FILE")
    stored = [rows for rows in map(stored_rows, filled.values()) if rows is not None]
    counts = Counts(rows=sum(map(len, stored)), truncated=sum(int(rows.cut.sum()) for rows in stored))
    spec, tagged = run.data_spec, run.task.info.rows == "tagged"
    for text in said(counts, spec.max_length, split=spec.overflow == "split", tagged=tagged):
        note(text)
    return filled
