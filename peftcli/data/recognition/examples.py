"""What a row becomes before it is tokenised; which of these, its format and the task decide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from peftcli.data.chat.conversations import Conversation


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


Example = Text | Conversation | Labelled | Tagged | InputTarget | Tokens
