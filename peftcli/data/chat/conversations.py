"""Conversations: messages with roles, as OpenAI, ShareGPT and Alpaca write them, in one form."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peftcli.data.chat.loss_flags import FLAGS, loss_flag
from peftcli.data.chat.turn_roles import CALL, calls_in, role_of
from peftcli.data.read.nested_values import structure
from peftcli.data.read.records import Record, RowError, in_words

ALPACA_HEAD = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
)
ALPACA_HEAD_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
)


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages in the form of transformers' chat templates.

    Args:
        messages: each with role and content, and whatever else its row holds, since templates may read it.
        trained: for each message whether its row says to train on it (None: the recipe decides).
        tools: JSON schemas of the tools, or None.
        plain: (prompt, completion) without a chat template, for formats that have a usual plain form.
        unused: what of the row is not in the messages, for the report.
    """

    messages: tuple[dict[str, Any], ...]
    trained: tuple[bool | None, ...]
    tools: list[Any] | None = None
    plain: tuple[str, str | None] | None = None
    unused: tuple[str, ...] = ()

    @classmethod
    def single(cls, prompt: str, completion: str | None, plain: tuple[str, str | None] | None = None) -> Conversation:
        """Return a question of the user and the answer to it."""
        turns: list[dict[str, Any]] = [{"role": "user", "content": prompt}]
        if completion is not None:
            turns.append({"role": "assistant", "content": completion})
        return cls(tuple(turns), (None,) * len(turns), None, plain or (prompt, completion))

    @classmethod
    def alpaca(
        cls, instruction: str, more: str, output: str | None, system: str = "", history: Sequence[tuple[str, str]] = ()
    ) -> Conversation:
        """Return an instruction with its optional input; plain, in the wording of Stanford Alpaca (2023).

        Args:
            history: earlier rounds, (instruction, answer) each; in plain text they are context and are not learnt.
        """
        head, body = (ALPACA_HEAD_INPUT if more.strip() else ALPACA_HEAD), _asked(instruction, more)
        rounds = "".join(f"### Instruction:\n{asked}\n\n### Response:\n{answer}\n\n" for asked, answer in history)
        plain = f"{system or head}\n\n{rounds}{body}\n\n### Response:\n"
        made = cls.single(f"{instruction}\n\n{more}" if more.strip() else instruction, output, (plain, output))
        before: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
        for asked, answer in history:
            before += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        return cls((*before, *made.messages), (*(None for _ in before), *made.trained), None, made.plain)


def _asked(instruction: str, more: str) -> str:
    asked = f"### Instruction:\n{instruction}"
    return f"{asked}\n\n### Input:\n{more}" if more.strip() else asked


def from_messages(
    turns: Any,
    tools: Any,
    expected: str,
    *,
    system: Any = None,
    completion: Any = None,
    predicting: bool = False,
) -> Conversation:
    """Return a conversation from OpenAI's form.

    Args:
        turns: list of messages, or the JSON text of one.
        system: text of a system turn in a column of its own; it is not used where the messages begin with one.
        completion: more messages, the only ones learnt (the conversational prompt/completion form).
        predicting: leave out a last answer, which is what would be predicted.

    Raises:
        RowError: a message is not as it should be.
    """
    turns = structure(turns)
    if not isinstance(turns, list) or not turns:
        raise RowError("there are no messages", expected)
    messages, trained = [], []
    for number, turn in enumerate(turns, 1):
        message, flag = _message(turn, number, expected)
        messages.append(message)
        trained.append(flag)
    unused = ["messages that a loss flag masks"] if False in trained else []
    if isinstance(system, str) and system.strip():
        if messages[0]["role"] != "system":
            messages, trained = [{"role": "system", "content": system}, *messages], [None, *trained]
        elif messages[0]["content"] != system:
            unused.append("system (the messages begin with a system turn of their own)")
    if completion is not None:
        completion = structure(completion)
        if isinstance(completion, str):
            completion = [{"role": "assistant", "content": completion}]
        answer = from_messages(completion, None, expected)
        trained = [False if message["role"] == "assistant" else None for message in messages]
        messages += answer.messages
        trained += answer.trained
        unused += answer.unused
    if predicting and messages[-1]["role"] == "assistant":
        messages.pop()
        trained.pop()
        if not messages:
            raise RowError("there is no message before the answer", expected)
    return Conversation(tuple(messages), tuple(trained), _tools(tools, expected), None, tuple(unused))


def from_sharegpt(turns: Any, system: Any, tools: Any, expected: str, *, predicting: bool = False) -> Conversation:
    """Return a conversation from ShareGPT's from/value form.

    Raises:
        RowError: a turn is not as it should be.
    """
    turns = structure(turns)
    if not isinstance(turns, list) or not turns:
        raise RowError("there are no turns", expected)
    messages: list[dict[str, Any]] = []
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict) or "from" not in turn or "value" not in turn:
            raise RowError(f"turn {number} has no from and value", expected)
        rest = {key: value for key, value in turn.items() if key not in ("from", "value")}
        messages.append({**rest, "role": turn["from"], "content": turn["value"]})
    return from_messages(messages, tools, expected, system=system, predicting=predicting)


def rounds_of(history: Any, expected: str) -> list[tuple[str, str]]:
    """Return the earlier rounds of an instruction record: pairs of a question and its answer.

    Raises:
        RowError: it is something else.
    """
    found = structure(history)
    if found is None or found == "":
        return []
    if not isinstance(found, list):
        raise RowError("history is not a list of [question, answer]", expected)
    out = []
    for pair in found:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise RowError("history is not a list of [question, answer]", expected)
        out.append((pair[0], pair[1]))
    return out


def is_empty(message: Mapping[str, Any]) -> bool:
    """Whether a message says nothing: no text, no call of a tool, no reasoning."""
    return not any(
        value.strip() if isinstance(value, str) else value
        for key, value in message.items()
        if key in ("content", "tool_calls") or "reasoning" in key or "thinking" in key
    )


def first_turn(records: Sequence[Record], column: str) -> Mapping[str, Any]:
    """Return the first turn of the first row with a list of objects in a column; empty without one."""
    for record in records:
        turns = structure(record.values.get(column))
        if isinstance(turns, list) and turns and isinstance(turns[0], dict):
            first: dict[str, Any] = turns[0]
            return first
    return {}


def _message(turn: Any, number: int, expected: str) -> tuple[dict[str, Any], bool | None]:
    """Return a message with every key of its row that has a value, loss flags aside, and its own training flag."""
    if not isinstance(turn, dict):
        raise RowError(f"message {number} is not an object", expected)
    role = role_of(turn.get("role"), number)
    message = {key: value for key, value in turn.items() if value is not None and key not in FLAGS}
    if role == CALL:
        message["role"] = role = "assistant"
        calls = calls_in(turn.get("content"))
        if calls is not None:
            message["content"], message["tool_calls"] = "", calls
    message["role"] = role
    if message.get("tool_calls") in (None, []):
        message.pop("tool_calls", None)
    message["content"] = _content(message.get("content"), number, "tool_calls" in message, expected)
    if "tool_calls" in message:
        message["tool_calls"] = _calls(structure(message["tool_calls"]), number, expected)
    flag = loss_flag(turn, number)
    if flag and role != "assistant":
        raise RowError(f"message {number} has train set, but its role is {role}", "train on assistant messages only")
    return message, flag if role == "assistant" else None


def _content(content: Any, number: int, has_calls: bool, expected: str) -> str:
    """Return the text of a message; text parts of a list are joined."""
    if content is None and has_calls:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        kinds = {str(part.get("type")) for part in content} - {"text"}
        if kinds:
            raise RowError(f"message {number} holds {', '.join(sorted(kinds))}, not only text", "text messages")
        if all(isinstance(part.get("text"), str) for part in content):
            return "".join(part["text"] for part in content)
    raise RowError(f"the content of message {number} is {in_words(content)}, not text", expected)


def _calls(calls: Any, number: int, expected: str) -> list[Any]:
    """Return tool calls with their arguments as objects: OpenAI sends JSON text, templates want the object."""
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise RowError(f"tool_calls of message {number} is not a list of objects", expected)
    out = []
    for call in calls:
        function = call.get("function")
        if isinstance(function, dict) and isinstance(function.get("arguments"), str):
            try:
                arguments = json.loads(function["arguments"])
            except ValueError as error:
                raise RowError(f"the arguments of a tool call in message {number} are not JSON", expected) from error
            call = {**call, "function": {**function, "arguments": arguments}}
        out.append(call)
    return out


def _tools(tools: Any, expected: str) -> list[Any] | None:
    """Return tool schemas; a JSON text of them, or of each, is read, since tables hold no nested values."""
    if tools is None or tools == "" or tools == []:
        return None
    found = structure(tools)
    if isinstance(found, str):
        raise RowError("tools is text that is not JSON", expected)
    found = [structure(tool) for tool in found] if isinstance(found, list) else found
    if not isinstance(found, list) or not all(isinstance(tool, dict) for tool in found):
        raise RowError("tools is not a list of JSON schemas", expected)
    return found or None
