"""Conversations: messages with roles, as OpenAI, ShareGPT and Alpaca write them, in one form."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peftcli.data.read.records import Record, RowError

ROLES = ("system", "developer", "user", "assistant", "tool")
SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}
_KEPT = ("role", "content", "tool_calls", "tool_call_id", "name", "reasoning_content", "thinking")
_FLAGS = ("train", "weight")

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
        messages: each with role and content, and whatever else templates read.
        trained: for each message whether its row says to train on it (None: the recipe decides).
        tools: JSON schemas of the tools, or None.
        plain: (prompt, completion) without a chat template, for formats that have a usual plain form.
    """

    messages: tuple[dict[str, Any], ...]
    trained: tuple[bool | None, ...]
    tools: list[Any] | None = None
    plain: tuple[str, str | None] | None = None

    @classmethod
    def single(cls, prompt: str, completion: str | None, plain: tuple[str, str | None] | None = None) -> Conversation:
        """Return a question of the user and the answer to it."""
        turns: list[dict[str, Any]] = [{"role": "user", "content": prompt}]
        if completion is not None:
            turns.append({"role": "assistant", "content": completion})
        return cls(tuple(turns), (None,) * len(turns), None, plain or (prompt, completion))

    @classmethod
    def alpaca(cls, instruction: str, more: str, output: str | None, system: str = "") -> Conversation:
        """Return an instruction with its optional input; plain, in the wording of Stanford Alpaca (2023)."""
        if more.strip():
            asked = f"{instruction}\n\n{more}"
            head, body = ALPACA_HEAD_INPUT, f"### Instruction:\n{instruction}\n\n### Input:\n{more}"
        else:
            asked, head, body = instruction, ALPACA_HEAD, f"### Instruction:\n{instruction}"
        plain = f"{system or head}\n\n{body}\n\n### Response:\n"
        made = cls.single(asked, output, (plain, output))
        if not system:
            return made
        first = {"role": "system", "content": system}
        return cls((first, *made.messages), (None, *made.trained), None, made.plain)


def from_messages(
    turns: Any, tools: Any, expected: str, *, completion: Any = None, predicting: bool = False
) -> Conversation:
    """Return a conversation from OpenAI's form.

    Args:
        turns: list of messages.
        completion: more messages, the only ones learnt (the conversational prompt/completion form).
        predicting: leave out a last answer, which is what would be predicted.

    Raises:
        RowError: a message is not as it should be.
    """
    if not isinstance(turns, list) or not turns:
        raise RowError("there are no messages", expected)
    messages, trained = [], []
    for number, turn in enumerate(turns, 1):
        message, flag = _message(turn, number, expected)
        messages.append(message)
        trained.append(flag)
    if completion is not None:
        if isinstance(completion, str):
            completion = [{"role": "assistant", "content": completion}]
        answer = from_messages(completion, None, expected)
        trained = [False if message["role"] == "assistant" else None for message in messages]
        messages += answer.messages
        trained += answer.trained
    if predicting and messages[-1]["role"] == "assistant":
        messages.pop()
        trained.pop()
        if not messages:
            raise RowError("there is no message before the answer", expected)
    return Conversation(tuple(messages), tuple(trained), _tools(tools, expected))


def from_sharegpt(turns: Any, system: Any, tools: Any, expected: str, *, predicting: bool = False) -> Conversation:
    """Return a conversation from ShareGPT's from/value form.

    Raises:
        RowError: a turn is not as it should be.
    """
    if not isinstance(turns, list) or not turns:
        raise RowError("there are no turns", expected)
    messages: list[dict[str, Any]] = []
    if isinstance(system, str) and system.strip():
        messages.append({"role": "system", "content": system})
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict) or "from" not in turn or "value" not in turn:
            raise RowError(f"turn {number} has no from and value", expected)
        speaker = turn["from"]
        role = SHAREGPT_ROLES.get(speaker) if isinstance(speaker, str) else None
        if role is None:
            raise RowError(f"turn {number} is from {speaker!r}", f"one of {', '.join(SHAREGPT_ROLES)}")
        flags = {key: turn[key] for key in _FLAGS if key in turn}
        messages.append({"role": role, "content": turn["value"], **flags})
    return from_messages(messages, tools, expected, predicting=predicting)


def first_turn(records: Sequence[Record], column: str) -> Mapping[str, Any]:
    """Return the first turn of the first row with a list of objects in a column; empty without one."""
    for record in records:
        turns = record.values.get(column)
        if isinstance(turns, list) and turns and isinstance(turns[0], dict):
            first: dict[str, Any] = turns[0]
            return first
    return {}


def _message(turn: Any, number: int, expected: str) -> tuple[dict[str, Any], bool | None]:
    """Return a message with the keys that templates read, and its own training flag."""
    if not isinstance(turn, dict):
        raise RowError(f"message {number} is not an object", expected)
    role = turn.get("role")
    if role not in ROLES:
        raise RowError(f"message {number} has the role {role!r}", f"one of {', '.join(ROLES)}")
    message = {key: turn[key] for key in _KEPT if turn.get(key) is not None}
    message["content"] = _content(turn.get("content"), number, "tool_calls" in message, expected)
    if "tool_calls" in message:
        message["tool_calls"] = _calls(message["tool_calls"], number, expected)
    flag = _flag(turn, number)
    if flag and role != "assistant":
        raise RowError(f"message {number} has train set, but its role is {role}", "train on assistant messages only")
    return message, flag


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
    what = "null" if content is None else f"a {type(content).__name__}"
    raise RowError(f"the content of message {number} is {what}, not text", expected)


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


def _flag(turn: dict[str, Any], number: int) -> bool | None:
    """Return whether a message itself says to train on it or not: `train: false`, or OpenAI's `weight: 0`."""
    flags = []
    if turn.get("train") is not None:
        if not isinstance(turn["train"], bool):
            raise RowError(f"train of message {number} is {turn['train']!r}", "true or false")
        flags.append(turn["train"])
    if turn.get("weight") is not None:
        if isinstance(turn["weight"], bool) or turn["weight"] not in (0, 1):
            raise RowError(f"weight of message {number} is {turn['weight']!r}", "0 or 1")
        flags.append(bool(turn["weight"]))
    if len(set(flags)) > 1:
        raise RowError(f"train and weight of message {number} disagree", "one of the two")
    return flags[0] if flags else None


def _tools(tools: Any, expected: str) -> list[Any] | None:
    """Return tool schemas; a JSON text of them is read, since tables hold no nested values."""
    if tools is None or tools == "" or tools == []:
        return None
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except ValueError as error:
            raise RowError("tools is text that is not JSON", expected) from error
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise RowError("tools is not a list of JSON schemas", expected)
    return tools
