"""An instruction, optionally with an input, and the output; Stanford Alpaca (2023)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from peftcli.data.chat.conversations import Conversation
from peftcli.data.recognition.examples import Example, InputTarget
from peftcli.data.recognition.row_format import Column, RecognisedFormat, RowFormat

_INSIDE = {"input": "input", "output": "output"}
"""The columns of nested instances."""


def _conversations(found: RecognisedFormat, values: Mapping[str, Any]) -> list[Example]:
    return _each(found, values, _conversation)


def _pairs(found: RecognisedFormat, values: Mapping[str, Any]) -> list[Example]:
    return _each(found, values, _pair)


def _each(
    found: RecognisedFormat,
    values: Mapping[str, Any],
    make: Callable[[RecognisedFormat, str, Mapping[str, Any]], Example],
) -> list[Example]:
    """Return the row's own example, or one for each of its nested instances."""
    instruction = found.prompt(values)
    nested = found.cell(values, "instances")
    if nested is None:
        return [make(found, instruction, values)]
    if not isinstance(nested, list) or not nested or not all(isinstance(item, dict) for item in nested):
        raise found.wrong("instances is not a list of objects")
    inside = replace(found, columns=_INSIDE)
    return [make(inside, instruction, item) for item in nested]


def _conversation(found: RecognisedFormat, instruction: str, values: Mapping[str, Any]) -> Example:
    more, output = _input(found, values), found.target(values, "output")
    system = found.cell(values, "system")
    return Conversation.alpaca(instruction, more, output, system if isinstance(system, str) else "")


def _pair(found: RecognisedFormat, instruction: str, values: Mapping[str, Any]) -> Example:
    more, output = _input(found, values), found.target(values, "output")
    return InputTarget(f"{instruction}\n{more}" if more.strip() else instruction, output)


def _input(found: RecognisedFormat, values: Mapping[str, Any]) -> str:
    more = found.cell(values, "input")
    if more is not None and not isinstance(more, str):
        raise found.wrong(f"input holds a {type(more).__name__}, not text")
    return more or ""


FORMAT = RowFormat(
    name="alpaca",
    columns=(
        Column("instruction"),
        Column("input", required=False),
        Column("output", ("response",), target=True, instead="instances"),
        Column("instances", required=False),
        Column("system", required=False),
    ),
    expected='{"instruction": "...", "input": "...", "output": "..."}, or "instances": [{"input", "output"}]',
    makes={"text": _conversations, "pairs": _pairs},
    template_column="instruction",
    rows=({"instruction": "Add the numbers.", "input": "2 and 2", "output": "4"},),
    about="`input` and `system` may be absent. Without a chat template the wording is Stanford Alpaca's.",
)
