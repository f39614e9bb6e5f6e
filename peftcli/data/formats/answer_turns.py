"""Prompts and answers of rows of preferences, which are texts or messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from peftcli.data.chat.conversations import Conversation, from_messages
from peftcli.data.read.nested_values import structure
from peftcli.data.recognition.row_format import RecognisedFormat

_TURN = {"human": "user", "gpt": "assistant"}


def prompt_of(found: RecognisedFormat, values: Mapping[str, Any]) -> str | list[dict[str, Any]]:
    """Return the prompt: a text, "" where there is none, or messages; LLaMA-Factory's may have an input."""
    if found.template:
        return found.prompt(values)
    given = turns_in(found.cell(values, "prompt"))
    if given is None or given == "":
        return ""
    if isinstance(given, list):
        return as_messages(found, "prompt", given)
    text = found.text(values, "prompt")
    more = found.cell(values, "input")
    return f"{text}\n{more}" if isinstance(more, str) and more.strip() else text


def answer_of(found: RecognisedFormat, values: Mapping[str, Any], name: str) -> str | list[dict[str, Any]]:
    """Return an answer: a text, or the messages from the end of the prompt, or from the beginning, to the answer."""
    given = turns_in(found.cell(values, name))
    if not isinstance(given, list):
        return found.text(values, name)
    turns = as_messages(found, name, given)
    if not turns:
        raise found.wrong(f"the column {found.columns[name]!r} has no messages")
    last = turns[-1]
    if str(last.get("role")).lower() not in _ANSWERING:
        raise found.wrong(
            f"the last message of {found.columns[name]!r} has the role {last.get('role')!r}, not an answer's"
        )
    content = last.get("content")
    if not last.get("tool_calls") and not (content.strip() if isinstance(content, str) else content):
        raise found.wrong(f"the answer in {found.columns[name]!r} is empty")
    return turns


_ANSWERING = ("assistant", "gpt", "chatgpt", "model", "bot", "ai", "function_call", "tool_call")


def turns_in(value: Any) -> Any:
    """Return the turns in a cell, which may be text or one turn alone; any other value, JSON too, as it is."""
    inner = structure(value)
    turns = [inner] if isinstance(inner, dict) else inner
    if not isinstance(turns, list) or (isinstance(value, str) and not any(map(_is_turn, turns))):
        return value
    return turns


def _is_turn(value: Any) -> bool:
    pairs = ({"role", "content"}, {"role", "tool_calls"}, {"from", "value"})
    return isinstance(value, dict) and any(pair <= value.keys() for pair in pairs)


def as_messages(found: RecognisedFormat, name: str, turns: Sequence[Any]) -> list[dict[str, Any]]:
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


def _as_turns(asked: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a prompt as messages; none where there is no text."""
    if isinstance(asked, list):
        return asked
    return [{"role": "user", "content": asked}] if asked else []


def behind_prompt(asked: str | list[dict[str, Any]], turns: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], int]:
    """Return messages with the prompt in front, which they may hold already, and how many of them the prompt ends.

    A prompt of text is often that of a user's turn behind a system turn. Space around a text, and keys that are null,
    make no other turn.
    """
    own = _as_turns(asked)
    said, wanted = [list(map(_without_nulls, some)) for some in (turns, own)]
    if said[: len(own)] == wanted:
        return turns, len(own)
    if isinstance(asked, str):
        for place, turn in enumerate(said[:-1], 1):
            if turn.get("content") == asked.strip() and str(turn.get("role")).lower() not in _ANSWERING:
                return turns, place
    return own + turns, len(own)


def _without_nulls(turn: Mapping[str, Any]) -> dict[str, Any]:
    filled = {key: value for key, value in turn.items() if value is not None}
    return {key: value.strip() if isinstance(value, str) else value for key, value in filled.items()}


def question_of(found: RecognisedFormat, values: Mapping[str, Any], asked: str | list[dict[str, Any]]) -> Conversation:
    """Return a prompt, after the row's system text, that waits for its answer.

    Raises:
        RowError: it is empty.
    """
    if not asked:
        raise found.wrong("there is no prompt")
    if isinstance(asked, str) and not _has_system(found, values):
        return Conversation.single(asked, None)
    system, tools = found.cell(values, "system"), found.cell(values, "tools")
    return from_messages(list(_as_turns(asked)), tools, found.format.expected, system=system, predicting=True)


def conversation_of(
    found: RecognisedFormat, values: Mapping[str, Any], asked: str | list[dict[str, Any]], answer: str
) -> Conversation:
    """Return a prompt, after the row's system text, and an answer of text."""
    if isinstance(asked, str) and not _has_system(found, values):
        return Conversation.single(asked, answer)
    return turns_of(found, values, _as_turns(asked), [{"role": "assistant", "content": answer}])


def _has_system(found: RecognisedFormat, values: Mapping[str, Any]) -> bool:
    system = found.cell(values, "system")
    return isinstance(system, str) and bool(system.strip())


def turns_of(
    found: RecognisedFormat, values: Mapping[str, Any], asked: Sequence[Any], answer: Sequence[Any]
) -> Conversation:
    """Return messages, with the row's system text and tools; only those of the answer are compared."""
    tools, system = found.cell(values, "tools"), found.cell(values, "system")
    made = from_messages(list(asked), tools, found.format.expected, system=system, completion=list(answer))
    return made
