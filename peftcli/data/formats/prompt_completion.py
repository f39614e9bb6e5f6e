"""A prompt and the text that follows it; both may be lists of messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftcli.data.chat.conversations import Conversation, from_messages
from peftcli.data.recognition.examples import Example, InputTarget
from peftcli.data.recognition.row_format import Column, RecognisedFormat, RowFormat


def _conversation(found: RecognisedFormat, values: Mapping[str, Any]) -> list[Example]:
    prompt = found.cell(values, "prompt")
    if isinstance(prompt, list) and not found.template:
        answer = None if found.predicting else found.cell(values, "completion")
        return [from_messages(prompt, None, found.format.expected, completion=answer)]
    return [Conversation.single(found.prompt(values, empty=True), found.target(values, "completion"))]


def _pair(found: RecognisedFormat, values: Mapping[str, Any]) -> list[Example]:
    return [InputTarget(found.prompt(values, empty=True), found.target(values, "completion"))]


FORMAT = RowFormat(
    name="prompt_completion",
    columns=(Column("prompt", ("query",)), Column("completion", ("response", "chosen", "output"), target=True)),
    expected='{"prompt": "...", "completion": "..."}',
    makes={"text": _conversation, "pairs": _pair},
    template_column="prompt",
    rows=({"prompt": "The capital of France is", "completion": " Paris."},),
    about="Training is on the completion. Both may be lists of messages.",
)
