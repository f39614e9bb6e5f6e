"""The formats of rows, in the order in which they are tried on a file's columns. A new format gets one line here."""

from __future__ import annotations

from peftcli.data.formats import (
    alpaca,
    classification,
    folders,
    input_target,
    messages,
    pretokenized,
    prompt_completion,
    question_answer,
    sharegpt,
    text,
    tokens_tags,
)
from peftcli.data.recognition.row_format import RowFormat
from peftcli.tasks.task_info import RowKind

FORMATS: tuple[RowFormat, ...] = (
    pretokenized.FORMAT,
    tokens_tags.FORMAT,
    classification.FORMAT,
    folders.FORMAT,
    alpaca.FORMAT,
    input_target.FORMAT,
    messages.FORMAT,
    sharegpt.FORMAT,
    prompt_completion.FORMAT,
    question_answer.FORMAT,
    text.FORMAT,
)
"""A row may have the columns of several formats: the first one that fits is taken."""

WITH_TEMPLATE = (prompt_completion.FORMAT, question_answer.FORMAT, alpaca.FORMAT, text.FORMAT)
"""The formats of `text` rows among which the answer's column chooses when `data.template` makes the prompt.

The last one has no answer: it is what is left.
"""

BY_NAME = {known.name: known for known in FORMATS}


def formats_for(kind: RowKind) -> tuple[RowFormat, ...]:
    """Return the formats whose rows can become rows of a kind, in the order of the table."""
    return tuple(known for known in FORMATS if kind in known.makes)
