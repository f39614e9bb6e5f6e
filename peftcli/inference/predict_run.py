"""Predict the rows of a file with one run or several."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftcli.data.prepare import prepare_for_prediction
from peftcli.data.rows.row_set import StoredRows
from peftcli.inference.open_run import Bases, open_run
from peftcli.inference.opened_run import OpenedRun
from peftcli.recipe.schema import DTypeName

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Note = Callable[[str], None]


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
    rows = prepare_for_prediction(data, run.data_spec, run.recipe.task, run.tokenizer)
    return run.predict(rows, _end_of_turn(run.tokenizer, rows))


def _end_of_turn(tokenizer: PreTrainedTokenizerBase, rows: StoredRows) -> tuple[int, ...]:
    """Return the token with which the rows' chat template ends a turn, if it is one."""
    turn = rows.store.meta.get("end_of_turn")
    number = tokenizer.convert_tokens_to_ids(turn) if turn else None
    return (number,) if isinstance(number, int) and number != tokenizer.unk_token_id else ()
