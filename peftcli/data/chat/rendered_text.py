"""A text to tokenise, with the characters of it that are learnt."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Span = tuple[int, int]
"""Characters (or tokens) from the first number up to the second, which is left out."""

TrainOn = Literal["completions", "last_turn", "all"]
"""Which answers of a conversation are learnt: all of them, the last one, or the whole text."""


@dataclass(slots=True)
class Rendered:
    """A text to tokenise.

    Args:
        text: all of it.
        spans: characters to learn, in order.
        whole: whether the tokenizer's own first tokens and EOS belong around it (plain text, not a template's).
        close: append EOS, learnt, since nothing in the text ends the last answer.
        unused: what of the row is not in the text, or not learnt although it could be.
        empty_answer: whether an answer without text is learnt.
    """

    text: str
    spans: list[Span] = field(default_factory=list)
    whole: bool = True
    close: bool = False
    unused: tuple[str, ...] = ()
    empty_answer: bool = False
