"""What a chat template puts around an answer, learnt once from a conversation of made-up words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from peftcli.data.chat.chat_template import FilledTemplate
from peftcli.data.read.records import RowError
from peftcli.errors import UserError

_PROBES = ("Qa7pX1", "Zk9wB2", "Qa7pX3", "Zk9wB4")  # words that no template holds


@dataclass(frozen=True)
class Surroundings:
    """What a template puts around an answer.

    Args:
        header: from the end of the user's text to where generation starts.
        gaps: texts between there and the answer itself (an empty thinking block, a space).
        closing: from the end of the answer to the end of the end-of-turn token, '' when there is none.
        is_token: whether the end of turn is a token of the vocabulary.
        end_of_turn: that token, or else the text that closes an answer.
    """

    header: str
    gaps: tuple[str, ...]
    closing: str
    is_token: bool
    end_of_turn: str


class TurnEnd:
    """Finds where a turn ends: behind the first special token of a tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self._specials = sorted((str(token) for token in tokenizer.get_added_vocab()), key=len, reverse=True)

    def closing(self, tail: str) -> tuple[str, str | None]:
        """Return the beginning of what follows an answer, up to the end of its first special token, and that token.

        Without a special token it is the whole text, white space at its end left out, and None.
        """
        found = [(tail.find(token), token) for token in self._specials if token in tail]
        if found:
            at, token = min(found, key=lambda pair: (pair[0], -len(pair[1])))
            return tail[: at + len(token)], token
        return tail.rstrip(), None


def learn_surroundings(template: FilledTemplate, turn_end: TurnEnd) -> Surroundings | None:
    """Return what the template puts around answers, None when the made-up conversation does not show it."""
    roles = ("user", "assistant", "user", "assistant")
    turns = [{"role": role, "content": word} for role, word in zip(roles, _PROBES, strict=True)]
    try:
        text, _ = template.render(turns, None)
        asked, _ = template.render(turns[:1], None, generate=True)
    except (RowError, UserError):  # whoever has conversations is told
        return None
    places = [text.find(word) for word in _PROBES]
    begun = asked.find(_PROBES[0])
    if min(places) < 0 or sorted(places) != places or begun < 0:
        return None
    width = len(_PROBES[0])
    header = asked[begun + width :]
    between = [text[places[i] + width : places[i + 1]] for i in (0, 2)]
    if not all(gap.startswith(header) for gap in between):
        return None
    closing, token = turn_end.closing(text[places[3] + width :])
    gaps = tuple(dict.fromkeys(gap[len(header) :] for gap in between))
    return Surroundings(header, gaps, closing, token is not None, token or closing.strip())
