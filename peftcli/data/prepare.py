"""From the recipe's `data` block to rows ready for training, evaluation or prediction."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from peftcli.data.encode.recipe_settings import recipe_settings
from peftcli.data.other_file import reading_spec, said
from peftcli.data.prepare_all_rows import RowPreparer
from peftcli.data.prepare_stream import prepare_stream
from peftcli.data.prepared_data import PreparedData
from peftcli.data.read.row_errors import remedy_for_rows
from peftcli.data.rows.row_set import StoredRows
from peftcli.data.store.build_store import Progress
from peftcli.data.store.labels import Kind, LabelSpec
from peftcli.data.store.open_store import open_store
from peftcli.distributed.memory_errors import OTHER_MACHINE, memory_for
from peftcli.errors import Problem, UserError
from peftcli.recipe.schema import DataSource, DataSpec, TaskName
from peftcli.tasks.task_table import task_info

_FOR_ROWS = f"split the file, or shorten its longest rows; {OTHER_MACHINE}"


class Places(Protocol):
    """Knows where in the recipe a key is written; `LoadedRecipe` does."""

    def problem(self, key: str, message: str, suggestion: str | None = None) -> Problem:
        """Return a problem with file and line of the key."""
        ...


@memory_for("while rows were prepared", _FOR_ROWS)
def prepare(
    spec: DataSpec,
    task: TaskName,
    tokenizer: Any,
    *,
    seed: int,
    labels: LabelSpec | None = None,
    where: Places | None = None,
    model_max_positions: int | None = None,
    target_positions: int | None = None,
    problem_type: Kind | None = None,
    progress: Progress | None = None,
    stream_rows: int | None = None,
) -> PreparedData:
    """Read, split and tokenise the rows of a recipe, or take them from the cache.

    Args:
        seed: of the recipe; see `RowPreparer`.
        labels: labels that are fixed already, those of a run; None takes them from the training rows.
        where: the recipe, for places in messages.
        model_max_positions: tokens that the model can place; a longer max_length is cut to it.
        target_positions: the same of a target, where the model's decoder has other positions than its encoder.
        problem_type: kind of label that the recipe asks for; None reads it off the labels.
        progress: called with the number of rows encoded so far.
        stream_rows: with `data.streaming`, how many training rows will be asked for (steps times rows of a step).

    Raises:
        UserError: anything wrong with the data, each with file and row.
    """
    try:
        preparer = RowPreparer(
            spec,
            task,
            tokenizer,
            seed=seed,
            labels=labels,
            longest=model_max_positions,
            longest_target=target_positions,
            kind=problem_type,
            progress=progress,
        )
        return prepare_stream(preparer, stream_rows) if spec.streaming else preparer.run()
    except UserError as error:
        if where is None:
            raise
        raise UserError([_placed(problem, where) for problem in error.problems]) from error


@memory_for("while rows were prepared", _FOR_ROWS)
def prepare_for_prediction(
    path: str, spec: DataSpec, task: TaskName, tokenizer: Any, trained_format: str | None = None
) -> StoredRows:
    """Return the inputs of a file, a row for each of its rows in order; labels and answers may be absent.

    Prompts end where the model goes on. Rows longer than max_length are cut: prompts at their beginning, texts at
    their end. A token-classification row holds, as label of each word's first token, the number of the word.

    Args:
        trained_format: format of the training rows, if it is known.

    Raises:
        UserError: a row that cannot be read; no row is left out.
    """
    spec = reading_spec(spec, path, trained_format).model_copy(update={"overflow": "truncate"})
    settings = recipe_settings(spec, task, tokenizer, spec.max_length, predicting=True)
    with remedy_for_rows("correct these rows, or remove them: each row gets a prediction, so none is left out"):
        store, _ = open_store(spec, [DataSource(path=path)], ["data"], settings, tokenizer, on_error="fail")
    return StoredRows(store, np.arange(len(store), dtype=np.int64), None)


@memory_for("while rows were prepared", _FOR_ROWS)
def prepare_for_evaluation(
    path: str,
    spec: DataSpec,
    task: TaskName,
    tokenizer: Any,
    labels: LabelSpec | None = None,
    trained_format: str | None = None,
    target_positions: int | None = None,
) -> tuple[StoredRows, list[str]]:
    """Return the rows of a file with what should be predicted, numbered by the labels of a run, and notes on them.

    Args:
        trained_format: format of the training rows, if it is known.
        target_positions: as in `prepare`.

    Raises:
        UserError: a row that cannot be read, or a label that the run does not know.
    """
    spec = reading_spec(spec, path, trained_format)
    with remedy_for_rows("correct these rows, or remove them"):
        preparer = RowPreparer(
            spec, task, tokenizer, seed=0, labels=labels, longest_target=target_positions, purpose="any"
        )
        made = preparer.run()
    assert isinstance(made.train, StoredRows)  # without packing
    split, tagged = spec.overflow == "split", task_info(task).rows == "tagged"
    return made.train, [*made.report.notes, *said(made.report.counts, spec.max_length, split=split, tagged=tagged)]


def _placed(problem: Problem, where: Places) -> Problem:
    """Return a problem of a recipe key with the place where the recipe writes it."""
    if problem.key is None or problem.file is not None:
        return problem
    return where.problem(problem.key, problem.message, problem.suggestion)
