"""The line that each row of a predicted file gets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from peftcli.data.rows.row_set import StoredRows
from peftcli.inference.input_rows import InputRows, beside
from peftcli.inference.opened_run import OpenedRun, Predicting
from peftcli.progress import stage

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Note = Callable[[str], None]


def row_lines(
    run: OpenedRun, rows: StoredRows, inputs: InputRows, note: Note, how: Predicting
) -> Iterator[dict[str, Any]]:
    """Yield the line of each row; say at the end how many rows and texts were cut.

    Args:
        inputs: the rows once more, read where their columns or words are part of the line.
    """
    cut, words = rows.cut, rows.words
    nested = len(rows) != len(rows.store.raw("status"))
    again = how.keep_columns or words is not None
    at_limit = 0
    with stage("predicting", len(rows)) as advance:
        for place, line in enumerate(run.predict(rows, _end_of_turn(run.tokenizer, rows), how)):
            record = inputs.at(int(rows.store.origin[rows.index[place]])) if again else None
            if words is not None and record is not None:
                line = {**line, **{key: _one_a_word(line[key], int(words[place])) for key in ("prediction", "scores")}}
                if (of_row := inputs.words(record)) is not None:
                    line = {"tokens": of_row, **line}
            if nested:  # several lines from one row of the file
                line = {"row": rows.store.place(place)[1], **line}
            if cut[place]:
                line["truncated"] = True
            at_limit += line.get("finish_reason") == "length"
            yield beside(record.values, line) if how.keep_columns and record is not None else line
            advance(1)
    if count := int(cut.sum()):
        limit = run.data_spec.max_length
        note(f"{count:,} of {len(rows):,} rows are longer than max_length {limit} and were cut (truncated: true)")
    if at_limit:
        note(
            f"{at_limit:,} of {len(rows):,} texts reached the limit of {run.recipe.training.max_new_tokens} new tokens "
            "before their end (finish_reason: length); --max-new-tokens raises it"
        )


def _one_a_word(values: list[Any], words: int) -> list[Any]:
    """Return a value for each word: null where the last words have none."""
    return [*values, *[None] * (words - len(values))]


def _end_of_turn(tokenizer: PreTrainedTokenizerBase, rows: StoredRows) -> tuple[int, ...]:
    """Return the token with which the rows' chat template ends a turn, if it is one."""
    turn = rows.store.meta.get("end_of_turn")
    number = tokenizer.convert_tokens_to_ids(turn) if turn else None
    return (number,) if isinstance(number, int) and number != tokenizer.unk_token_id else ()
