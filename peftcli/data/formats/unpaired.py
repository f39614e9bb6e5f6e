"""A prompt with one answer and whether it is a good one: KTO's rows, as TRL, axolotl and LLaMA-Factory read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from peftcli.data.formats.answer_turns import (
    answer_of,
    behind_prompt,
    conversation_of,
    prompt_of,
    question_of,
    turns_in,
    turns_of,
)
from peftcli.data.read.records import Record
from peftcli.data.recognition.examples import Example, Judged
from peftcli.data.recognition.row_format import Column, RecognisedFormat, RowFormat

_GOOD, _BAD = ("true", "1", "yes"), ("false", "0", "no")


def _judged(found: RecognisedFormat, values: Mapping[str, Any]) -> list[Example]:
    """Return the answer of a row with its label.

    Raises:
        RowError: the prompt, the answer or the label is missing or empty, or the label is neither true nor false.
    """
    asked = prompt_of(found, values)
    if found.predicting:
        return [question_of(found, values, asked or _asked(found, values))]
    good = _label(found, values)
    if "completion" not in found.columns:
        turns = answer_of(found, values, "prompt")
        if isinstance(turns, str) or len(turns) < 2:
            raise found.wrong("there is no answer: the row has no completion, and its messages are not two or more")
        return [Judged(turns_of(found, values, turns[:-1], turns[-1:]), good)]
    answer = answer_of(found, values, "completion")
    if isinstance(answer, str):
        if not asked:
            raise found.wrong("there is no prompt")
        return [Judged(conversation_of(found, values, asked, answer), good)]
    turns, before = behind_prompt(asked, answer)
    before = before or len(turns) - 1
    if not before or before == len(turns):
        raise found.wrong("there is no prompt" if not before else "there is no answer behind the prompt")
    return [Judged(turns_of(found, values, turns[:before], turns[before:]), good)]


def _label(found: RecognisedFormat, values: Mapping[str, Any]) -> bool:
    """Return whether the answer is a good one."""
    given = found.label(values, "label")
    word = str(int(given) if isinstance(given, float) and given in (0, 1) else given).strip().lower()
    if word not in (*_GOOD, *_BAD):
        raise found.wrong(f"the label in {found.columns['label']!r} is {given!r}, neither true nor false")
    return word in _GOOD


def _asked(found: RecognisedFormat, values: Mapping[str, Any]) -> str | list[dict[str, Any]]:
    """Return what stands before the answer of a conversation."""
    given = turns_in(found.cell(values, "completion"))
    return given[:-1] if isinstance(given, list) else ""


def _has_answers(columns: Mapping[str, str], records: Sequence[Record]) -> bool:
    return "completion" in columns or any(
        isinstance(turns_in(record.values.get(columns["prompt"])), list) for record in records if "prompt" in columns
    )


FORMAT = RowFormat(
    name="unpaired",
    columns=(
        Column("label", ("kto_tag",), target=True),
        Column("completion", ("response", "output", "answer"), required=False, target=True),
        Column(
            "prompt",
            ("question", "instruction", "query", "messages", "conversations", "conversation"),
            required=False,
        ),
        Column("input", required=False),
        Column("system", ("system_prompt",), required=False),
        Column("tools", ("functions",), required=False),
    ),
    expected='{"prompt": "...", "completion": "...", "label": true}',
    makes={"preferences": _judged},
    template_column="prompt",
    looks_right=_has_answers,
    loss="kto",
    rows=(
        {"prompt": "What is two plus two?", "completion": "Four.", "label": True},
        {
            "messages": [
                {"role": "user", "content": "What is two plus two?"},
                {"role": "assistant", "content": "Five."},
            ],
            "label": False,
        },
    ),
    about="""\
A row has one answer to a prompt and says whether it is good, for `training.loss_type: kto`. This loss also reads pairs,
as two answers each. Prompt and completion are texts or lists of messages; without a completion, the last message is
the answer. The columns of LLaMA-Factory's form (`instruction` with `input` and `output`, or `conversations`, and
`kto_tag`) and of axolotl's are recognised, too. Labels other than true and false (or 1 and 0) are errors.""",
)
