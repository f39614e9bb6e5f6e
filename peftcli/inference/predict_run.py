"""Predict the rows of a file with one run or several."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftcli.data.other_file import columns_of, reading_spec
from peftcli.data.plain_texts import format_of_training, texts_as_inputs
from peftcli.data.prepare import prepare_for_prediction
from peftcli.data.rows.row_set import StoredRows
from peftcli.errors import UserError
from peftcli.inference.complete_model import find_used, is_recipe, refuse_checkpoint
from peftcli.inference.evaluate_run import open_untrained
from peftcli.inference.input_rows import InputRows, beside
from peftcli.inference.open_run import AS_TRAINED, Bases, FoundRun, Opening, load_run, with_text_length
from peftcli.inference.opened_run import OpenedRun, Predicting
from peftcli.inference.row_lines import row_lines
from peftcli.models.own_code import with_allowed_code
from peftcli.names import NAMES
from peftcli.recipe.load_recipe import TRUST_REMOTE_CODE, load_recipe
from peftcli.recipe.run_paths import lies_in_run
from peftcli.recipe.schema import DataSpec, Recipe, TaskName
from peftcli.tasks.decoding import GREEDY
from peftcli.tasks.generation import decoding_note
from peftcli.tasks.task_table import task_info

Note = Callable[[str], None]


def predict_run(
    run: Path | str,
    data: str,
    note: Note = lambda _text: None,
    opening: Opening = AS_TRAINED,
    how: Predicting | None = None,
) -> Iterator[dict[str, Any]]:
    """Return predictions for a file, a line for each of its rows in order; among several processes, in the main one.

    A line has `prediction` and `scores`; `truncated` (true) where tokens of the row were left out; for generated text
    `finish_reason`: `stop`, or `length` where it reached the limit. Tags are one for each word, null for a word without
    tokens or beyond max_length, and `tokens` are the words.

    Args:
        run: a run directory, a directory with a complete model, or a recipe, whose untrained base then predicts.
        data: any data file of the task's format; labels may be absent. A column `text` is what the model goes on from,
            whatever the format of the training rows is.
        note: receives what the user should know; the number of rows that were cut comes at the end.
        opening: how the run, model or base is opened.
        how: batch size, how the tokens of a text are chosen, what is kept; None is the recipe's, and greedy.

    Raises:
        UserError: anything about the run or the file is wrong; raised here, before the first prediction.
    """
    path, how = Path(run), how or Predicting()
    if is_recipe(path) and not lies_in_run(path):  # a run's recipe means the run
        return _predict_untrained(path, data, opening, note, how)
    found = find_used(path, opening)
    refuse_sampling(found.loaded.recipe.task, how)
    opened_run = load_run(found)
    for text in opened_run.notes:
        note(text)
    return _predict(opened_run, data, note, how)


def predict_runs(
    runs: Sequence[Path | str],
    data: str,
    note: Note = lambda _text: None,
    opening: Opening = AS_TRAINED,
    how: Predicting | None = None,
) -> Iterator[dict[str, Any]]:
    """Return predictions of several runs for one file, each with `run`; a base that they share is loaded once.

    Args:
        runs: run directories or complete models, in the order of the output: all rows of the first, then all of the
            second, ...
        data, note, opening, how: as in `predict_run`.

    Raises:
        UserError: anything about a run or the file is wrong; raised here, before the first prediction, but for what
            only the weights of a base can tell.
    """
    how = how or Predicting()
    for run in runs:
        if is_recipe(Path(run)):
            raise UserError(f"{run} is a recipe: its untrained base predicts", suggestion=f"peft predict {run} ...")
    found = [find_used(Path(run), opening) for run in runs]
    for one in found:  # the rows are kept prepared, so this is not done twice
        recipe = one.loaded.recipe
        refuse_sampling(recipe.task, how)
        _read_as(recipe.data or DataSpec(), recipe, data, one.trained_format).prepare(one.tokenizer)
    return _predict_each(runs, found, data, note, how)


def refuse_sampling(task: TaskName, how: Predicting) -> None:
    """Refuse options of generated text where none is written.

    Raises:
        UserError: the task writes none.
    """
    if how.decoding != GREEDY and not task_info(task).generates:
        raise UserError(
            f"--temperature, --top-p, --top-k and --num-beams are for generated text; {task} writes none",
            suggestion="leave them out",
        )


def _predict_untrained(
    path: Path, data: str, opening: Opening, note: Note, how: Predicting
) -> Iterator[dict[str, Any]]:
    """Predict with the base of a recipe, as it is before training."""
    refuse_checkpoint(opening.checkpoint, f"{path} is a recipe")
    loaded = with_allowed_code(load_recipe(path, [TRUST_REMOTE_CODE] if opening.trust_code else [], NAMES))
    loaded = with_text_length(loaded, opening.max_new_tokens)
    refuse_sampling(loaded.recipe.task, how)
    run, _ = open_untrained(loaded, opening.base_dtype)
    for text in run.notes:
        note(text)
    return _predict(run, data, note, how)


def _predict_each(
    runs: Sequence[Path | str], found: Sequence[FoundRun], data: str, note: Note, how: Predicting
) -> Iterator[dict[str, Any]]:
    bases = Bases()
    for run, one in zip(runs, found, strict=True):
        opened_run = load_run(one, bases)

        def say(text: str, run: Path | str = run) -> None:
            note(f"{run}: {text}")

        for text in opened_run.notes:
            say(text)
        for row in _predict(opened_run, data, say, how):
            named = {"run": str(run)}
            yield named | beside(row, named)
        opened_run.close()


def _predict(run: OpenedRun, data: str, note: Note, how: Predicting) -> Iterator[dict[str, Any]]:
    task = run.recipe.task
    reading = _read_as(run.data_spec, run.recipe, data, run.trained_format)
    rows = run.world.main_first(lambda: reading.prepare(run.tokenizer))
    of_base = decoding_note(run.model, how.decoding) if how.decoding != GREEDY else None
    for text in [*reading.notes, *rows.store.meta["notes"], *([of_base] if of_base else [])]:
        note(text)
    return row_lines(run, rows, InputRows(data, reading.spec, task), note, how)


@dataclass(frozen=True)
class _Reading:
    """How a file is read for a prediction."""

    path: str
    spec: DataSpec
    task: TaskName
    trained_format: str | None
    notes: list[str]

    def prepare(self, tokenizer: Any) -> StoredRows:
        return prepare_for_prediction(self.path, self.spec, self.task, tokenizer, self.trained_format)


def _read_as(spec: DataSpec, recipe: Recipe, path: str, trained_format: str | None) -> _Reading:
    """Return how a run reads a file: as its training rows, or a text as what it goes on from."""
    trained = trained_format or format_of_training(recipe.data, recipe.task)
    reading = reading_spec(spec, path, trained)
    found, notes = texts_as_inputs(reading, recipe.task, columns_of(path), trained)
    return _Reading(path, found, recipe.task, trained, notes)
