"""A prompt with two answers, of which one is the better: DPO's rows, as TRL, axolotl and LLaMA-Factory read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from peftcli.data.chat.conversations import Conversation, from_messages
from peftcli.data.read.nested_values import structure
from peftcli.data.read.records import Record
from peftcli.data.recognition.examples import Example, Preferred
from peftcli.data.recognition.row_format import Column, RecognisedFormat, RowFormat

_TURN = {"human": "user", "gpt": "assistant"}


def _preferred(found: RecognisedFormat, values: Mapping[str, Any]) -> list[Example]:
    """Return the pair of a row.

    Raises:
        RowError: a side is missing or empty, the sides are equal, or they have no beginning in common.
    """
    asked = _prompt(found, values)
    if found.predicting:
        return [_question(found, values, asked)]
    chosen, rejected = _answer(found, values, "chosen"), _answer(found, values, "rejected")
    if chosen == rejected:
        raise found.wrong("chosen and rejected are the same: there is nothing to prefer")
    if isinstance(chosen, str) and isinstance(rejected, str):
        if not asked:
            raise found.wrong("there is no prompt")
        return [Preferred(*(_conversation(found, values, asked, text) for text in (chosen, rejected)))]
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise found.wrong("of chosen and rejected one is a text and the other one is messages")
    own = _user(asked) if isinstance(asked, str) else asked
    one, other = (turns if turns[: len(own)] == own else own + turns for turns in (chosen, rejected))
    shared = _shared(one, other)
    if not shared:
        raise found.wrong("chosen and rejected have no turn in common at their beginning, and there is no prompt")
    return [Preferred(*(_turns(found, values, turns[:shared], turns[shared:]) for turns in (one, other)))]


def _prompt(found: RecognisedFormat, values: Mapping[str, Any]) -> str | list[dict[str, Any]]:
    """Return the prompt: a text, "" where there is none, or messages; LLaMA-Factory's may have an input."""
    if found.template:
        return found.prompt(values)
    given = _turns_in(found.cell(values, "prompt"))
    if given is None or given == "":
        return ""
    if isinstance(given, list):
        return _as_messages(found, "prompt", given)
    text = found.text(values, "prompt")
    more = found.cell(values, "input")
    return f"{text}\n{more}" if isinstance(more, str) and more.strip() else text


def _answer(found: RecognisedFormat, values: Mapping[str, Any], name: str) -> str | list[dict[str, Any]]:
    """Return an answer: a text, or the messages from the end of the prompt, or from the beginning, to the answer."""
    given = _turns_in(found.cell(values, name))
    if not isinstance(given, list):
        return found.text(values, name)
    turns = _as_messages(found, name, given)
    if not turns:
        raise found.wrong(f"the column {found.columns[name]!r} has no messages")
    last = turns[-1]
    if str(last.get("role")).lower() not in _ANSWERING:
        raise found.wrong(f"the last message of {found.columns[name]!r} is of {last.get('role')!r}, not an answer")
    content = last.get("content")
    if not last.get("tool_calls") and not (content.strip() if isinstance(content, str) else content):
        raise found.wrong(f"the answer in {found.columns[name]!r} is empty")
    return turns


_ANSWERING = ("assistant", "gpt", "chatgpt", "model", "bot", "ai", "function_call", "tool_call")


def _turns_in(value: Any) -> Any:
    """Return the turns in a cell, which may be text or one turn alone; any other value, JSON too, as it is."""
    inner = structure(value)
    turns = [inner] if isinstance(inner, dict) else inner
    if not isinstance(turns, list) or (isinstance(value, str) and not any(map(_is_turn, turns))):
        return value
    return turns


def _is_turn(value: Any) -> bool:
    pairs = ({"role", "content"}, {"role", "tool_calls"}, {"from", "value"})
    return isinstance(value, dict) and any(pair <= value.keys() for pair in pairs)


def _as_messages(found: RecognisedFormat, name: str, turns: Sequence[Any]) -> list[dict[str, Any]]:
    """Return the turns of a column with role and content; ShareGPT's from and value are renamed."""
    out = []
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict):
            raise found.wrong(f"message {number} of {found.columns[name]!r} is not an object")
        if "from" in turn and "value" in turn:
            rest = {key: value for key, value in turn.items() if key not in ("from", "value")}
            turn = {**rest, "role": _TURN.get(str(turn["from"]), turn["from"]), "content": turn["value"]}
        out.append(turn)
    return out


def _user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}] if text else []


def _shared(chosen: Sequence[Any], rejected: Sequence[Any]) -> int:
    """Return how many turns both sides begin with; the last of each is its own."""
    count = 0
    for one, other in zip(chosen[:-1], rejected[:-1], strict=False):
        if one != other:
            break
        count += 1
    return count


def _conversation(
    found: RecognisedFormat, values: Mapping[str, Any], asked: str | list[dict[str, Any]], answer: str
) -> Conversation:
    system = found.cell(values, "system")
    if isinstance(asked, list) or (isinstance(system, str) and system.strip()):
        turns = asked if isinstance(asked, list) else _user(asked)
        return _turns(found, values, turns, [{"role": "assistant", "content": answer}])
    return Conversation.single(asked, answer)


def _turns(
    found: RecognisedFormat, values: Mapping[str, Any], asked: Sequence[Any], answer: Sequence[Any]
) -> Conversation:
    tools, system = found.cell(values, "tools"), found.cell(values, "system")
    made = from_messages(list(asked), tools, found.format.expected, system=system, completion=list(answer))
    return made


def _question(found: RecognisedFormat, values: Mapping[str, Any], asked: str | list[dict[str, Any]]) -> Conversation:
    """Return what is to be answered: the prompt, or the beginning of a conversation."""
    system, tools, expected = found.cell(values, "system"), found.cell(values, "tools"), found.format.expected
    if not asked:
        given = {name: _turns_in(found.cell(values, name)) for name in ("chosen", "rejected")}
        sides = [_as_messages(found, name, one) for name, one in given.items() if isinstance(one, list)]
        asked = sides[0][: _shared(*sides)] if len(sides) == 2 else sides[0][:-1] if sides else ""
    if isinstance(asked, str) and not asked:
        raise found.wrong("there is no prompt")
    if isinstance(asked, str) and not (isinstance(system, str) and system.strip()):
        return Conversation.single(asked, None)
    turns = _user(asked) if isinstance(asked, str) else asked
    return from_messages(list(turns), tools, expected, system=system, predicting=True)


def _has_answers(columns: Mapping[str, str], records: Sequence[Record]) -> bool:
    return (
        "prompt" in columns
        or {"chosen", "rejected"} <= columns.keys()
        or any(
            isinstance(_turns_in(record.values.get(columns[name])), list)
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
    ),
    expected='{"prompt": "...", "chosen": "...", "rejected": "..."}',
    makes={"preferences": _preferred},
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
turns within an answer are read and not compared. LLaMA-Factory's ranking form (`instruction` with `input`, or
`conversations`, and two answers, which may be single turns) and axolotl's are the same columns.""",
)
