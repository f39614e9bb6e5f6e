"""The names of speakers in the files of many tools, and what a turn that calls a tool holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from peftcli.data.read.nested_values import structure
from peftcli.data.read.records import RowError

_ROLES = ("system", "developer", "user", "assistant", "tool")
"""The roles that chat templates know."""

CALL = "call"
"""Stands for the assistant's role where the turn's content is the call of a tool."""

_NAMES: Mapping[str, tuple[str, ...]] = {
    "system": ("system", "context_system"),
    "developer": ("developer",),
    "user": ("user", "human", "prompter", "customer", "student"),
    "assistant": ("assistant", "gpt", "chatgpt", "bing", "bard", "model", "bot", "ai", "chatbot", "llm", "agent"),
    "tool": (
        "tool",
        "observation",
        "function",
        "function_response",
        "function_result",
        "function_output",
        "tool_response",
        "tool_result",
        "tool_output",
        "tool_message",
        "ipython",
    ),
    CALL: ("function_call", "tool_call", "tool_calls", "function_calls"),
}
_ROLE_OF = {name: role for role, names in _NAMES.items() for name in names}


def role_of(name: Any, number: int) -> str:
    """Return the role that a speaker's name means, or `CALL`.

    Args:
        number: of the message, for the error.

    Raises:
        RowError: nobody calls a speaker so.
    """
    plain = name.strip().lower().replace("-", "_").replace(" ", "_") if isinstance(name, str) else None
    if plain not in _ROLE_OF:
        known = ", ".join(dict.fromkeys(_ROLE_OF))
        raise RowError(f"message {number} has the role {name!r}", f"one of the roles: {known}; rename it in the file")
    return _ROLE_OF[plain]


def calls_in(content: Any) -> list[dict[str, Any]] | None:
    """Return the tool calls that the content of a turn holds as JSON, in OpenAI's form; None for any other text."""
    found = structure(content)
    calls = found if isinstance(found, list) else [found]
    if not calls or not all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in calls):
        return None
    return [
        {
            "type": "function",
            "function": {
                "name": call["name"],
                "arguments": structure(call.get("arguments", call.get("parameters")) or {}),
            },
        }
        for call in calls
    ]


def text_of_calls(calls: list[Any]) -> str:
    """Return tool calls as lines of JSON with name and arguments, for templates that show none."""
    shown = [call.get("function", call) for call in calls]
    return "\n".join(
        json.dumps({k: call[k] for k in ("name", "arguments") if k in call}, ensure_ascii=False) for call in shown
    )
