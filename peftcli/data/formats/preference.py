"""A prompt with two answers, of which one is the better: DPO's rows, as TRL, axolotl and LLaMA-Factory read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from peftcli.data.formats.answer_turns import (
    answer_of,
    as_messages,
    behind_prompt,
    conversation_of,
    prompt_of,
    question_of,
    turns_in,
    turns_of,
)
from peftcli.data.read.records import Record
from peftcli.data.recognition.examples import Example, Preferred
from peftcli.data.recognition.row_format import Column, RecognisedFormat, RowFormat


def _preferred(found: RecognisedFormat, values: Mapping[str, Any]) -> list[Example]:
    """Return the pair of a row.

    Raises:
        RowError: a side is missing or empty, the sides are equal, or they have no beginning in common.
    """
    asked = prompt_of(found, values)
    if found.predicting:
        return [question_of(found, values, asked or _asked(found, values))]
    chosen, rejected = answer_of(found, values, "chosen"), answer_of(found, values, "rejected")
    if chosen == rejected:
        raise found.wrong("chosen and rejected are the same: there is nothing to prefer")
    if isinstance(chosen, str) and isinstance(rejected, str):
        if not asked:
            raise found.wrong("there is no prompt")
        better, worse = (conversation_of(found, values, asked, text) for text in (chosen, rejected))
        return [Preferred(better, worse)]
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise found.wrong("one of chosen and rejected is a text, the other is a list of messages")
    one, other = (behind_prompt(asked, turns)[0] for turns in (chosen, rejected))
    shared = _shared(one, other)
    if not shared:
        raise found.wrong("chosen and rejected do not begin with the same turn, and there is no prompt")
    better, worse = (turns_of(found, values, turns[:shared], turns[shared:]) for turns in (one, other))
    return [Preferred(better, worse)]


def _scored(found: RecognisedFormat, values: Mapping[str, Any]) -> list[Example]:
    """Return the pair of a row, with by how much the chosen answer is ahead where both have a score."""
    made = _preferred(found, values)
    scores = [found.cell(values, name) for name in ("score_chosen", "score_rejected")]
    if not all(isinstance(score, int | float) for score in scores):
        return made
    ahead = float(scores[0] - scores[1])
    return [replace(example, ahead=ahead) if isinstance(example, Preferred) else example for example in made]


def _shared(chosen: Sequence[Any], rejected: Sequence[Any]) -> int:
    """Return how many turns both sides begin with; the last of each is its own."""
    count = 0
    for one, other in zip(chosen[:-1], rejected[:-1], strict=False):
        if one != other:
            break
        count += 1
    return count


def _asked(found: RecognisedFormat, values: Mapping[str, Any]) -> str | list[dict[str, Any]]:
    """Return what two conversations have in common at their beginning, or what stands before the answer of one."""
    given = {name: turns_in(found.cell(values, name)) for name in ("chosen", "rejected")}
    sides = [as_messages(found, name, one) for name, one in given.items() if isinstance(one, list)]
    return sides[0][: _shared(*sides)] if len(sides) == 2 else sides[0][:-1] if sides else ""


def _has_answers(columns: Mapping[str, str], records: Sequence[Record]) -> bool:
    return (
        "prompt" in columns
        or {"chosen", "rejected"} <= columns.keys()
        or any(
            isinstance(turns_in(record.values.get(columns[name])), list)
            for record in records
            for name in ("chosen", "rejected")
            if name in columns
        )
    )


FORMAT = RowFormat(
    name="preference",
    columns=(
        Column("chosen", ("chosen_response", "preferred", "win"), target=True),
        Column("rejected", ("rejected_response", "dispreferred", "lose"), target=True),
        Column(
            "prompt",
            ("question", "instruction", "query", "messages", "conversations", "conversation"),
            required=False,
        ),
        Column("input", required=False),
        Column("system", ("system_prompt",), required=False),
        Column("tools", ("functions",), required=False),
        Column("score_chosen", ("chosen_score", "chosen_rating", "chosen-rating"), required=False),
        Column("score_rejected", ("rejected_score", "rejected_rating", "rejected-rating"), required=False),
    ),
    expected='{"prompt": "...", "chosen": "...", "rejected": "..."}',
    makes={"preferences": _scored},
    template_column="prompt",
    looks_right=_has_answers,
    rows=(
        {"prompt": "What is two plus two?", "chosen": "Four.", "rejected": "Five."},
        {
            "chosen": [
                {"role": "user", "content": "What is two plus two?"},
                {"role": "assistant", "content": "Four."},
            ],
            "rejected": [
                {"role": "user", "content": "What is two plus two?"},
                {"role": "assistant", "content": "Five."},
            ],
        },
    ),
    about="""\
The prompt and the answers are texts or lists of messages (OpenAI's or ShareGPT's). `chosen` and `rejected` may be
conversations with a common beginning, which is then the prompt. Only the tokens of the answers are compared; tool
turns within an answer are read and not compared. The columns of LLaMA-Factory's ranking form (`instruction` with
`input`, or `conversations`, and two answers, which may be single turns) and of axolotl's are recognised, too. If the
answers have scores, a note counts pairs with equal scores and pairs whose rejected answer has the higher score.""",
)
