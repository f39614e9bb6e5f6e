"""Conversations as ShareGPT writes them: turns with from and value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from peftcli.data.chat.conversations import first_turn, from_sharegpt
from peftcli.data.read.records import Record
from peftcli.data.recognition.examples import Example
from peftcli.data.recognition.row_format import Column, RecognisedFormat, RowFormat


def _conversation(found: RecognisedFormat, values: Mapping[str, Any]) -> list[Example]:
    turns, system, tools = (found.cell(values, name) for name in ("conversations", "system", "tools"))
    return [from_sharegpt(turns, system, tools, found.format.expected, predicting=found.predicting)]


def _have_speakers(columns: Mapping[str, str], records: Sequence[Record]) -> bool:
    return "from" in first_turn(records, columns["conversations"])


FORMAT = RowFormat(
    name="sharegpt",
    columns=(
        Column("conversations", ("conversation", "messages")),
        Column("system", ("system_prompt",), required=False),
        Column("tools", required=False),
    ),
    expected='{"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}',
    makes={"text": _conversation},
    looks_right=_have_speakers,
    rows=(
        {
            "conversations": [
                {"from": "human", "value": "What is two plus two?"},
                {"from": "gpt", "value": "Four."},
            ]
        },
    ),
)
