"""Conversations as OpenAI writes them: messages with role and content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from peftcli.data.chat.conversations import first_turn, from_messages
from peftcli.data.read.records import Record
from peftcli.data.recognition.examples import Example
from peftcli.data.recognition.row_format import Column, RecognisedFormat, RowFormat


def _conversation(found: RecognisedFormat, values: Mapping[str, Any]) -> list[Example]:
    turns, tools = found.cell(values, "messages"), found.cell(values, "tools")
    system = found.cell(values, "system")
    return [from_messages(turns, tools, found.format.expected, system=system, predicting=found.predicting)]


def _have_roles(columns: Mapping[str, str], records: Sequence[Record]) -> bool:
    return "role" in first_turn(records, columns["messages"])


FORMAT = RowFormat(
    name="messages",
    columns=(
        Column("messages", ("conversation", "conversations", "dialogue", "chat")),
        Column("tools", ("functions",), required=False),
        Column("system", ("system_prompt",), required=False),
    ),
    expected='{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}',
    makes={"text": _conversation},
    looks_right=_have_roles,
    rows=(
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "What is two plus two?"},
                {"role": "assistant", "content": "Four."},
            ]
        },
    ),
    about="""\
Roles: system, developer, user, assistant, tool, and the names that other tools give them (human, gpt, model,
observation, tool_response, ...). A turn of `function_call` or `tool_call` is a tool call of the assistant. Contents are
text; images and sound are refused.
Only the assistant's messages are trained on. `"train": false`, `"weight": 0`, `"loss": false` or `"mask": true` on a
message excludes it. `tools` holds JSON schemas, `tool_calls` the calls. If the template does not show calls, they are
written into the text as lines of JSON. `system` is the text of a system turn.""",
)
