"""Where characters are among the tokens of a byte-level tokenizer, found from the tokens' bytes.

The backend counts offsets while it tokenises, which takes up to a third of its time. The tokens of a byte-level
tokenizer (GPT-2, Llama 3, Qwen) are pieces of the text's bytes, so that their lengths are enough where they, put
together, are the text.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from peftcli.data.chat.rendered_text import Span

TRIED, WASTED = 64, 4
"""Texts after which it is given up where a quarter of them was in vain."""


def byte_of_character() -> dict[str, int]:
    """Return the byte that each character of a byte-level vocabulary stands for (GPT-2's table)."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("\xa1"), ord("\xac") + 1), *range(ord("\xae"), ord("\xff") + 1)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + place): byte for place, byte in enumerate(hidden)}


class _TokenBytes(dict[int, bytes]):
    """The bytes of tokens by number, each looked up once; those of a token that is no piece of a text match none."""

    def __init__(self, backend: Any) -> None:
        super().__init__()
        self._backend, self._bytes = backend, byte_of_character()
        self._added = {number: token.content for number, token in backend.get_added_tokens_decoder().items()}

    def __missing__(self, number: int) -> bytes:
        if number in self._added:
            found: bytes = self._added[number].encode()
        else:
            text = self._backend.id_to_token(number) or "\0"
            found = bytes(self._bytes[char] for char in text) if all(char in self._bytes for char in text) else b"\0"
        self[number] = found
        return found


class TokenBytes:
    """Finds spans among tokens. Where it is not sure, it says nothing, and offsets must tell.

    Attributes:
        useful: whether it makes sense to go on asking.
    """

    def __init__(self, backend: Any) -> None:
        self.useful = type(backend.decoder).__name__ == "ByteLevel"
        self._of = _TokenBytes(backend) if self.useful else {}
        self._asked = self._vain = 0

    def ranges(self, text: str, spans: Sequence[Span], ids: list[int]) -> list[Span] | None:
        """Return the tokens [first, last) of the characters [start, end); None where a border is inside of a token.

        Also where a span begins or ends with white space, which offsets may leave out.
        """
        found = self._found(text, spans, ids)
        self._asked += 1
        self._vain += found is None
        self.useful = self._asked < TRIED or self._vain * WASTED < self._asked
        return found

    def _found(self, text: str, spans: Sequence[Span], ids: list[int]) -> list[Span] | None:
        whole = text.encode()
        pieces = list(map(self._of.__getitem__, ids))
        if b"".join(pieces) != whole:
            return None
        if not spans:
            return []
        plain = len(whole) == len(text)
        borders = list(accumulate(map(len, pieces), initial=0))
        out = []
        for start, end in spans:
            if text[start].isspace() or text[end - 1].isspace():
                return None
            places = (start, end) if plain else (len(text[:start].encode()), len(text[:end].encode()))
            first, last = bisect_left(borders, places[0]), bisect_left(borders, places[1])
            if borders[first] != places[0] or borders[last] != places[1]:
                return None
            out.append((first, last))
        return out
