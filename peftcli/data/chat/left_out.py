"""What of a conversation a rendered text does not show: keys that a template does not read, and turns that it drops."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from peftcli.data.chat.conversations import Conversation
from peftcli.data.chat.rendered_text import Span
from peftcli.data.chat.turn_roles import text_of_calls
from peftcli.data.read.records import RowError

THOUGHT = "</think>"
"""What ends a model's reasoning inside an answer; many templates drop it from earlier turns."""


class TemplateReads:
    """Knows which keys of messages a chat template names."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._known: dict[str, bool] = {}
        self._whole = bool(re.search(r"\bmessages?\s*(\[[^\]]*\])?\s*\|\s*(tojson|string)", text))

    def key(self, name: str) -> bool:
        """Return whether the template can read a key of a message."""
        if name not in self._known:
            self._known[name] = self._whole or bool(re.search(rf"(?:\.\s*|['\"]){re.escape(name)}\b", self._text))
        return self._known[name]


def with_calls_as_text(conversation: Conversation) -> Conversation:
    """Return a conversation whose tool calls are lines of JSON in the content, for a text that shows no others."""
    if not any("tool_calls" in message for message in conversation.messages):
        return conversation
    messages = []
    for message in conversation.messages:
        if "tool_calls" in message:
            calls = text_of_calls(message["tool_calls"])
            content = f"{message['content']}\n{calls}" if message["content"].strip() else calls
            message = {**{key: value for key, value in message.items() if key != "tool_calls"}, "content": content}
        messages.append(message)
    return Conversation(
        tuple(messages), conversation.trained, conversation.tools, conversation.plain, conversation.unused
    )


def parts_left_out(conversation: Conversation, text: str, reads: TemplateReads | None) -> Iterator[str]:
    """Yield what of a conversation is not in its text, one name for each kind of thing.

    Args:
        reads: the template's keys; None for plain text, which shows role and content alone.
    """
    for message in conversation.messages:
        content = message["content"]
        if message["role"] != "assistant" and not shows(text, content):
            yield f"{message['role']} messages"
        for key, value in message.items():
            if key in ("role", "content"):
                continue
            named = reads is not None and reads.key(key)
            if not named or not all(shows(text, part) for part in _texts(key, value)):
                yield f"messages[].{key}"
    if conversation.tools and not any(shows(text, part) for tool in conversation.tools for part in _names(tool)):
        yield "tools"


def check_answers(
    conversation: Conversation, text: str, spans: Sequence[Span], answers: Sequence[int]
) -> Iterator[str]:
    """Yield a name where a part of an answer is not in the characters that are learnt for it.

    Args:
        spans: the characters of each answer.
        answers: numbers of the assistant's messages.

    Raises:
        RowError: nothing of an answer is there.
    """
    for (start, end), number in zip(spans, answers, strict=True):
        content, shown = conversation.messages[number]["content"].strip(), text[start:end]
        if shows(shown, content):
            continue
        said = content.rpartition(THOUGHT)[2].split()
        if said and not any(word in shown for word in said[:20]):
            raise RowError(
                f"the chat template leaves out the answer in message {number + 1}",
                "a template that shows assistant messages: name another with data.chat_template",
            )
        yield "parts of assistant messages"


def shows(text: str, part: str) -> bool:
    """Return whether a text holds another, surrounding space aside, or holds it as JSON."""
    bare = part.strip()
    return bare in text or json.dumps(bare)[1:-1] in text or json.dumps(bare, ensure_ascii=False)[1:-1] in text


def _texts(key: str, value: Any) -> list[str]:
    """Return the texts of a message's key that must be in the whole; numbers and flags say nothing."""
    if key == "tool_calls" and isinstance(value, list):
        return [name for call in value for name in _names(call)]
    return [value] if isinstance(value, str) else []


def _names(tool: Any) -> list[str]:
    """Return the name of a tool's schema or call."""
    inner = tool.get("function", tool) if isinstance(tool, dict) else {}
    name = inner.get("name") if isinstance(inner, dict) else None
    return [name] if isinstance(name, str) else []
