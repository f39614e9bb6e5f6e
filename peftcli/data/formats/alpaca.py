"""An instruction, optionally with an input, and the output; Stanford Alpaca (2023)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from peftcli.data.chat.conversations import Conversation, rounds_of
from peftcli.data.read.nested_values import structure
from peftcli.data.read.records import in_words
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
    nested = structure(found.cell(values, "instances"))
    if nested is None or nested == "":
        return [make(found, instruction, values)]
    if not isinstance(nested, list) or not nested or not all(isinstance(item, dict) for item in nested):
        raise found.wrong("instances is not a list of objects")
    around = {ours: found.columns[ours] for ours in ("system", "history") if ours in found.columns}
    inside, outer = replace(found, columns={**_INSIDE, **around}), {name: values.get(name) for name in around.values()}
    return [make(inside, instruction, {**outer, **item}) for item in nested]


def _conversation(found: RecognisedFormat, instruction: str, values: Mapping[str, Any]) -> Example:
    more, output = _input(found, values), found.target(values, "output")
    system, history = _around(found, values)
    return Conversation.alpaca(instruction, more, output, system, history)


def _pair(found: RecognisedFormat, instruction: str, values: Mapping[str, Any]) -> Example:
    more, output = _input(found, values), found.target(values, "output")
    system, history = _around(found, values)
    parts = [system, *(text for pair in history for text in pair), instruction, more]
    return InputTarget("\n".join(part for part in parts if part.strip()), output)


def _around(found: RecognisedFormat, values: Mapping[str, Any]) -> tuple[str, list[tuple[str, str]]]:
    """Return the system text and the earlier rounds of a record."""
    system = found.cell(values, "system")
    if system is not None and not isinstance(system, str):
        raise found.wrong(f"system holds {in_words(system)}, not text")
    return system or "", rounds_of(found.cell(values, "history"), found.format.expected)


def _input(found: RecognisedFormat, values: Mapping[str, Any]) -> str:
    more = found.cell(values, "input")
    if more is not None and not isinstance(more, str):
        raise found.wrong(f"input holds {in_words(more)}, not text")
    return more or ""


FORMAT = RowFormat(
    name="alpaca",
    columns=(
        Column("instruction"),
        Column("input", ("context",), required=False),
        Column("output", ("response",), target=True, instead="instances"),
        Column("instances", required=False),
        Column("system", ("system_prompt",), required=False),
        Column("history", required=False),
    ),
    expected='{"instruction": "...", "input": "...", "output": "..."}, or "instances": [{"input", "output"}]',
    makes={"text": _conversations, "pairs": _pairs},
    template_column="instruction",
    rows=({"instruction": "Add the numbers.", "input": "2 and 2", "output": "4"},),
    about="""\
`input`, `system` and `history` (earlier rounds: `[["question", "answer"], ...]`) may be absent. Without a chat
template, the prompt has Stanford Alpaca's wording, and earlier rounds are context that is not trained on.""",
)
