"""A question and its answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftcli.data.chat.conversations import Conversation
from peftcli.data.recognition.examples import Example, InputTarget
from peftcli.data.recognition.row_format import Column, RecognisedFormat, RowFormat


def _conversation(found: RecognisedFormat, values: Mapping[str, Any]) -> list[Example]:
    question, answer = found.prompt(values), found.target(values, "answer")
    # without a line break of its own, a question in plain text would run into its answer
    plain = None if found.template else (f"{question}\n", answer)
    return [Conversation.single(question, answer, plain)]


def _pair(found: RecognisedFormat, values: Mapping[str, Any]) -> list[Example]:
    return [InputTarget(found.prompt(values), found.target(values, "answer"))]


FORMAT = RowFormat(
    name="question_answer",
    columns=(Column("question", ("problem",)), Column("answer", ("solution", "answers"), target=True)),
    expected='{"question": "...", "answer": "..."}',
    makes={"text": _conversation, "pairs": _pair},
    template_column="question",
    rows=({"question": "What is two plus two?", "answer": "Four."},),
)
