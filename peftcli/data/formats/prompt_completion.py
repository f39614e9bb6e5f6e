"""A prompt and the text that follows it; both may be lists of messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftcli.data.chat.conversations import Conversation, from_messages
from peftcli.data.read.nested_values import structure
from peftcli.data.read.records import RowError
from peftcli.data.recognition.examples import Example, InputTarget
from peftcli.data.recognition.row_format import Column, RecognisedFormat, RowFormat


def _conversation(found: RecognisedFormat, values: Mapping[str, Any]) -> list[Example]:
    prompt, system = structure(found.cell(values, "prompt")), found.cell(values, "system")
    if found.template:
        prompt = None
    if isinstance(system, str) and system.strip() and not isinstance(prompt, list):
        prompt = [{"role": "user", "content": found.prompt(values, empty=True)}]
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], dict):
        answer = None if found.predicting else found.cell(values, "completion")
        return [from_messages(prompt, None, found.format.expected, system=system, completion=answer)]
    return [Conversation.single(found.prompt(values, empty=True), found.target(values, "completion"))]


def _pair(found: RecognisedFormat, values: Mapping[str, Any]) -> list[Example]:
    if isinstance(found.cell(values, "prompt"), list) and not found.template:
        raise RowError(
            "prompt is a list of messages: a sequence-to-sequence model reads texts",
            '{"prompt": "...", "completion": "..."}',
        )
    system = found.cell(values, "system")
    asked = found.prompt(values, empty=True)
    if isinstance(system, str) and system.strip():
        asked = f"{system}\n{asked}"
    return [InputTarget(asked, found.target(values, "completion"))]


FORMAT = RowFormat(
    name="prompt_completion",
    columns=(
        Column("prompt", ("query",)),
        Column("completion", ("response", "chosen", "output"), target=True),
        Column("system", ("system_prompt",), required=False),
    ),
    expected='{"prompt": "...", "completion": "..."}',
    makes={"text": _conversation, "pairs": _pair},
    template_column="prompt",
    rows=({"prompt": "The capital of France is", "completion": " Paris."},),
    about="Only the completion is trained on. `causal_lm` also takes lists of messages. `system` is a system turn.",
)
