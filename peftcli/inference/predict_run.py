"""Predict the rows of a file with one run or several."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftcli.data.prepare import prepare_for_prediction
from peftcli.data.rows.row_set import StoredRows
from peftcli.errors import UserError
from peftcli.inference.open_run import Bases, FoundRun, find_run, load_run, open_run
from peftcli.inference.opened_run import OpenedRun, Predicting
from peftcli.recipe.schema import DataSpec, DTypeName
from peftcli.tasks.decoding import GREEDY

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Note = Callable[[str], None]


def predict_run(
    run: Path | str,
    data: str,
    base_dtype: DTypeName | None = None,
    note: Note = lambda _text: None,
    max_new_tokens: int | None = None,
    trust_code: bool = False,
    checkpoint: str | None = None,
    how: Predicting | None = None,
) -> Iterator[dict[str, Any]]:
    """Return predictions for a file, a line for each of its rows in order; among several processes, in the main one.

    A line has `prediction` and `scores`; `truncated` (true) where tokens of the row were left out; for generated text
    `finish_reason`: `stop`, or `length` where it reached the limit. Tags are one for each word, null for a word without
    tokens or beyond max_length.

    Args:
        run: a run directory.
        data: any data file of the task's format; labels may be absent.
        note: receives what the user should know; the number of rows that were cut comes at the end.
        max_new_tokens: longest generated text in tokens; None is the recipe's.
        trust_code: let the Python code that comes with the model run.
        checkpoint: use this one (`checkpoint_adapter`), not the result of the finished run.
        how: batch size, and how the tokens of a text are chosen; None is the recipe's, and greedy.

    Raises:
        UserError: anything about the run or the file is wrong; raised here, before the first prediction.
    """
    opened_run = open_run(run, base_dtype, None, max_new_tokens, trust_code, checkpoint)
    for text in opened_run.notes:
        note(text)
    return _predict(opened_run, data, note, how)


def predict_runs(
    runs: Sequence[Path | str],
    data: str,
    base_dtype: DTypeName | None = None,
    note: Note = lambda _text: None,
    max_new_tokens: int | None = None,
    trust_code: bool = False,
    checkpoint: str | None = None,
    how: Predicting | None = None,
) -> Iterator[dict[str, Any]]:
    """Return predictions of several runs for one file, each with `run`; a base that they share is loaded once.

    Args:
        runs: run directories, in the order of the output: all rows of the first, then all of the second, ...
        data, note, max_new_tokens, trust_code, checkpoint, how: as in `predict_run`.

    Raises:
        UserError: anything about a run or the file is wrong; raised here, before the first prediction, but for what
            only the weights of a base can tell.
    """
    found = [find_run(run, base_dtype, max_new_tokens, trust_code, checkpoint) for run in runs]
    for one in found:  # the rows are kept prepared, so this is not done twice
        spec = one.loaded.recipe.data or DataSpec()
        prepare_for_prediction(data, spec, one.loaded.recipe.task, one.tokenizer, one.trained_format)
    return _predict_each(runs, found, data, note, how)


def _predict_each(
    runs: Sequence[Path | str], found: Sequence[FoundRun], data: str, note: Note, how: Predicting | None
) -> Iterator[dict[str, Any]]:
    bases = Bases()
    for run, one in zip(runs, found, strict=True):
        opened_run = load_run(one, bases)

        def say(text: str, run: Path | str = run) -> None:
            note(f"{run}: {text}")

        for text in opened_run.notes:
            say(text)
        for row in _predict(opened_run, data, say, how):
            yield {"run": str(run), **row}
        opened_run.close()


def _predict(run: OpenedRun, data: str, note: Note, how: Predicting | None) -> Iterator[dict[str, Any]]:
    if how is not None and how.decoding != GREEDY and not run.task.info.generates:
        raise UserError(
            f"--temperature, --top-p, --top-k and --num-beams are for generated text; {run.recipe.task} writes none",
            suggestion="leave them out",
        )
    spec, task = run.data_spec, run.recipe.task
    rows = run.world.main_first(lambda: prepare_for_prediction(data, spec, task, run.tokenizer, run.trained_format))
    for text in rows.store.meta["notes"]:
        note(text)
    return _lines(run, rows, note, how)


def _lines(run: OpenedRun, rows: StoredRows, note: Note, how: Predicting | None) -> Iterator[dict[str, Any]]:
    """Yield the line of each row; say at the end how many rows and texts were cut."""
    cut, words = rows.cut, rows.words
    nested = len(rows) != len(rows.store.raw("status"))
    at_limit = 0
    for place, line in enumerate(run.predict(rows, _end_of_turn(run.tokenizer, rows), how)):
        if words is not None:
            line = {**line, **{key: _one_a_word(line[key], int(words[place])) for key in ("prediction", "scores")}}
        if nested:  # several lines from one row of the file
            line = {"row": rows.store.place(place)[1], **line}
        if cut[place]:
            line["truncated"] = True
        at_limit += line.get("finish_reason") == "length"
        yield line
    if count := int(cut.sum()):
        limit = run.data_spec.max_length
        note(f"{count:,} of {len(rows):,} rows are longer than max_length {limit} and were cut (truncated: true)")
    if at_limit:
        note(
            f"{at_limit:,} of {len(rows):,} texts reached the limit of {run.recipe.training.max_new_tokens} new tokens "
            "before their end (finish_reason: length); --max-new-tokens sets another"
        )


def _one_a_word(values: list[Any], words: int) -> list[Any]:
    """Return a value for each word: null where the last words have none."""
    return [*values, *[None] * (words - len(values))]


def _end_of_turn(tokenizer: PreTrainedTokenizerBase, rows: StoredRows) -> tuple[int, ...]:
    """Return the token with which the rows' chat template ends a turn, if it is one."""
    turn = rows.store.meta.get("end_of_turn")
    number = tokenizer.convert_tokens_to_ids(turn) if turn else None
    return (number,) if isinstance(number, int) and number != tokenizer.unk_token_id else ()
