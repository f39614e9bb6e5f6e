"""What a row becomes before it is tokenised; which of these, its format and the task decide."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from peftcli.data.chat.conversations import Conversation
from peftcli.data.read.records import RowError


@dataclass(frozen=True, slots=True)
class Text:
    """A document: every token is learnt."""

    text: str


@dataclass(frozen=True, slots=True)
class Labelled:
    """A text, or a pair, and its raw label: one value, a list, or None when predicting."""

    text: str
    pair: str | None
    label: Any


@dataclass(frozen=True, slots=True)
class Tagged:
    """Words and one raw tag for each; `tags` is None when predicting."""

    tokens: list[str]
    tags: list[Any] | None


@dataclass(frozen=True, slots=True)
class InputTarget:
    """What a sequence-to-sequence model reads and writes; `target` is None when predicting."""

    input: str
    target: str | None


@dataclass(frozen=True, slots=True)
class Tokens:
    """A row that is tokenised already; labels are token labels, or one raw label."""

    input_ids: list[int]
    labels: Any


@dataclass(frozen=True, slots=True)
class Preferred:
    """Two conversations with the same beginning, whose last turns are a better and a worse answer.

    Args:
        ahead: the score of the chosen answer less that of the rejected one; None where the file has no scores.
    """

    chosen: Conversation
    rejected: Conversation
    ahead: float | None = None


@dataclass(frozen=True, slots=True)
class Judged:
    """A conversation whose last turn is a good or a bad answer."""

    conversation: Conversation
    good: bool


Example = Text | Conversation | Labelled | Tagged | InputTarget | Tokens | Preferred | Judged


def check_characters(example: Example) -> None:
    """Raise a `RowError` for a lone surrogate: half of a character, which no tokenizer reads."""
    for text in _texts(example):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            message = f"half a character at position {error.start + 1}: a \\ud800 to \\udfff that stands alone"
            raise RowError(message, "both halves, or none") from error


def _texts(example: Example) -> Iterator[str]:
    if isinstance(example, Text):
        yield example.text
    elif isinstance(example, Labelled):
        yield example.text
        yield example.pair or ""
    elif isinstance(example, Tagged):
        yield "".join(example.tokens)
    elif isinstance(example, InputTarget):
        yield example.input
        yield example.target or ""
    elif isinstance(example, Preferred):
        yield from _texts(example.chosen)
        yield from _texts(example.rejected)
    elif isinstance(example, Judged):
        yield from _texts(example.conversation)
    elif isinstance(example, Conversation):
        plain = example.plain
        yield from (plain[0], plain[1] or "") if plain else ()
        for message in example.messages:
            yield json.dumps(message, ensure_ascii=False, default=str) if len(message) > 2 else message["content"]
        yield json.dumps(example.tools, ensure_ascii=False, default=str) if example.tools else ""
