"""Tokenise texts in batches and say which tokens cover which characters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from peftcli.data.chat.rendered_text import Span
from peftcli.data.encode.encoded import Ints

SAMPLE = 32  # rows of one encoder whose prefixes are tokenised again to check the offsets


CHARS = 12  # characters of a token at most, as a guess that is checked: English has four to five
COUNTED = 100_000  # characters of a text that are tokenised to say how long it is
MARGIN = 8  # tokens beyond the limit that a shortened text must give: its last ones may not be those of the whole


class TextTokens(Protocol):
    """Turns texts into tokens without any special tokens around them."""

    checked: int
    disagreed: int

    def encode(self, texts: Sequence[str], spans: Sequence[Sequence[Span]]) -> list[tuple[Ints, list[Span]]]:
        """Return for each text its ids, and the token ranges of the given character ranges."""
        ...


def text_tokens(tokenizer: Any) -> TextTokens:
    """Return the quickest way that a tokenizer offers."""
    return FastTokens(tokenizer) if tokenizer.is_fast else SlowTokens(tokenizer)


class FastTokens:
    """A tokenizer with offsets: one batched call, then a few look-ups for each span."""

    def __init__(self, tokenizer: Any) -> None:
        self._backend = tokenizer.backend_tokenizer
        self.checked = self.disagreed = 0

    def encode(self, texts: Sequence[str], spans: Sequence[Sequence[Span]]) -> list[tuple[Ints, list[Span]]]:
        """Return for each text its ids, and the token ranges of the given character ranges."""
        # other callers of the same tokenizer may have left truncation or padding switched on
        self._backend.no_truncation()
        self._backend.no_padding()
        out = []
        encodings = self._backend.encode_batch(list(texts), add_special_tokens=False)
        for text, wanted, encoding in zip(texts, spans, encodings, strict=True):
            ids = np.array(encoding.ids, dtype=np.int32)
            ranges = [self._range(encoding, text, ids, start, end) for start, end in wanted if end > start]
            out.append((ids, ranges))
        return out

    def _range(self, encoding: Any, text: str, ids: Ints, start: int, end: int) -> Span:
        """Return the tokens [first, last) of the characters [start, end)."""
        first = _token_at(encoding, range(start, end))
        last = _token_at(encoding, range(end - 1, start - 1, -1))
        if first is None or last is None:
            return (0, 0)
        while last + 1 < len(ids):  # a character of several bytes may be several tokens
            chars = encoding.token_to_chars(last + 1)
            if chars is None or chars[0] >= end:
                break
            last += 1
        begins = encoding.token_to_chars(first)[0]
        if start > 0 and (begins < start or self.checked < SAMPLE):
            first = self._checked_start(text[:start], ids, first, straddles=begins < start)
        return (first, last + 1)

    def _checked_start(self, prefix: str, ids: Ints, first: int, *, straddles: bool) -> int:
        """Tokenise the prefix alone, as at inference, and compare; a straddling token is learnt from there on."""
        alone = np.array(self._backend.encode(prefix, add_special_tokens=False).ids, dtype=np.int32)
        self.checked += 1
        if len(alone) == first and np.array_equal(alone, ids[:first]):
            return first
        self.disagreed += 1
        if not straddles:
            return first
        shortest = min(len(alone), len(ids))
        differ = np.flatnonzero(alone[:shortest] != ids[:shortest])
        return int(differ[0]) if len(differ) else min(shortest, first)


def _token_at(encoding: Any, places: range) -> int | None:
    """Return the token at the first of some characters that any token covers; white space may be covered by none."""
    for place in places:
        token = encoding.char_to_token(place)
        if token is not None:
            return int(token)
    return None


class SlowTokens:
    """A tokenizer without offsets: the pieces between span borders are tokenised apart."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.checked = self.disagreed = 0

    def encode(self, texts: Sequence[str], spans: Sequence[Sequence[Span]]) -> list[tuple[Ints, list[Span]]]:
        """Return for each text its ids, and the token ranges of the given character ranges."""
        return [self._one(text, wanted) for text, wanted in zip(texts, spans, strict=True)]

    def _one(self, text: str, wanted: Sequence[Span]) -> tuple[Ints, list[Span]]:
        borders = sorted({0, len(text), *(place for span in wanted for place in span)})
        ids: list[int] = []
        tokens_at = {0: 0}
        for start, end in pairwise(borders):
            ids += self._tokenizer.encode(text[start:end], add_special_tokens=False)
            tokens_at[end] = len(ids)
        ranges = [(tokens_at[start], tokens_at[end]) for start, end in wanted if end > start]
        return np.array(ids, dtype=np.int32), ranges


@dataclass(frozen=True, slots=True)
class Piece:
    """A text, or a part of one, with the tokenizer's special tokens; `types` are the segments of a pair."""

    ids: Ints
    types: npt.NDArray[np.uint8]


class FramedTokens:
    """Texts or pairs with the special tokens that the tokenizer puts around them, cut to a length."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None, longest: int | None) -> list[list[Piece]]:
        """Return the pieces of each text, the first of which is the cut text; one piece when nothing was cut.

        Args:
            pairs: the second text of each row; the longer of the two is cut first.
            longest: tokens of a piece, None to cut nothing.
        """
        if not self._tokenizer.is_fast:
            return self._slow(texts, pairs, longest)
        shortened = texts if pairs is not None or longest is None else [beginning(text, longest) for text in texts]
        out = self._fast(shortened, pairs, longest)
        for place, (text, short) in enumerate(zip(texts, shortened, strict=True)):
            if len(short) < len(text) and sum(len(piece.ids) for piece in out[place]) < (longest or 0) + MARGIN:
                out[place] = self._fast([text], None, longest)[0]  # its tokens are longer than was guessed
        return out

    def count(self, text: str, pair: str | None) -> int:
        """Return the tokens of a text or pair that is not cut; of very long ones a guess by their beginnings."""
        short = text[:COUNTED], None if pair is None else pair[:COUNTED]
        if self._tokenizer.is_fast:
            found = len(self._fast([short[0]], None if short[1] is None else [short[1]], None)[0][0].ids)
        else:
            found = len(self._tokenizer(short[0], short[1], verbose=False)["input_ids"])
        whole, seen = len(text) + len(pair or ""), len(short[0]) + len(short[1] or "")
        return found if whole == seen else round(found * whole / seen)

    def _fast(self, texts: Sequence[str], pairs: Sequence[str] | None, longest: int | None) -> list[list[Piece]]:
        backend = self._tokenizer.backend_tokenizer
        backend.no_padding()
        backend.no_truncation()
        if longest is not None:
            backend.enable_truncation(longest, direction=self._tokenizer.truncation_side)
        rows = list(texts) if pairs is None else list(zip(texts, pairs, strict=True))
        encodings = backend.encode_batch_fast(rows)  # without offsets, which nothing asks for
        backend.no_truncation()
        return [[_piece(encoding), *map(_piece, encoding.overflowing)] for encoding in encodings]

    def _slow(self, texts: Sequence[str], pairs: Sequence[str] | None, longest: int | None) -> list[list[Piece]]:
        """Return the cut text, and behind it the whole one if that is longer."""
        out = []
        for place, text in enumerate(texts):
            pair = None if pairs is None else pairs[place]
            whole = self._tokenizer(text, pair, return_token_type_ids=True, verbose=False)
            pieces = [whole]
            if longest is not None and len(whole["input_ids"]) > longest:
                cut = self._tokenizer(text, pair, truncation=True, max_length=longest, return_token_type_ids=True)
                pieces = [cut, whole]
            out.append([_numbers(piece["input_ids"], piece["token_type_ids"]) for piece in pieces])
        return out


def beginning(text: str, tokens: int) -> str:
    """Return the beginning of a text, long enough for some tokens and a margin: the rest would be cut anyway.

    It ends before a space, where tokens end; a text without one there stays whole.
    """
    limit = CHARS * (tokens + MARGIN)
    space = text.find(" ", limit, 2 * limit)
    return text[:space] if space > 0 else text


def _piece(encoding: Any) -> Piece:
    return _numbers(encoding.ids, encoding.type_ids)


def _numbers(ids: Sequence[int], types: Sequence[int]) -> Piece:
    return Piece(np.array(ids, dtype=np.int32), np.array(types, dtype=np.uint8))
