"""Spans found by the tokens' bytes are those of the offsets, which are asked where bytes cannot tell."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from peftcli.data.encode.encoded import Encoded, FlatRows
from peftcli.data.encode.token_bytes import TRIED, TokenBytes
from peftcli.data.encode.tokenise import SAMPLE, FastTokens
from tests.data.encode.test_tokenizers import TOKENIZERS
from tests.data.tools import chat_tokenizer

WORDS = ["What", " is", " two", "\n\n", "é", "☃ ", "  ", "The", " answer", "<|im_end|>", "\n", " four", ".", "漢字"]


def cases(count: int) -> tuple[list[str], list[list[tuple[int, int]]]]:
    """Return texts of such words, each with two spans of any characters."""
    draw = random.Random(0)
    texts = ["".join(draw.choices(WORDS, k=draw.randrange(4, 20))) for _ in range(count)]
    borders = [sorted(draw.sample(range(len(text) + 1), 4)) for text in texts]
    return texts, [[(a, b), (c, d)] for a, b, c, d in borders]


@pytest.mark.parametrize("kind", sorted(TOKENIZERS))
def test_spans_are_those_of_the_offsets(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    texts, spans = cases(300)
    found = []
    for quick in (True, False):
        tokens = FastTokens(tokenizer)
        tokens._bytes.useful = quick and tokens._bytes.useful
        made = [pair for start in range(0, 300, 25) for pair in tokens.encode(texts[start:][:25], spans[start:][:25])]
        found.append(([(ids.tolist(), ranges) for ids, ranges in made], tokens.checked, tokens.disagreed))
    assert found[0] == found[1]
    assert found[0][1] >= SAMPLE


def test_bytes_tell_where_borders_are_those_of_tokens() -> None:
    tokenizer = chat_tokenizer()
    bytes_of = TokenBytes(tokenizer.backend_tokenizer)
    text = "<|im_start|>What is é☃?<|im_end|>\n"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    start, end = len("<|im_start|>"), len(text) - 1
    ((first, last),) = bytes_of.ranges(text, [(start, end)], ids) or []
    assert tokenizer.decode(ids[first:last]) == text[start:end]
    assert bytes_of.ranges(text, [(start + 1, end)], ids) is None or len(tokenizer.tokenize("What")) > 1
    assert bytes_of.ranges(text, [(start + len("What is "), end + 1)], ids) is None  # ends with white space
    assert bytes_of.ranges("something else", [(0, 4)], ids) is None
    assert bytes_of.ranges(text, [], ids) == []


def test_it_is_given_up_where_it_is_mostly_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = FastTokens(TOKENIZERS["lowercasing"]())
    assert tokens._bytes.useful  # its tokens are bytes, but not those of the text
    texts = [f"What is {n}?" for n in range(TRIED + 8)]
    tokens.encode(texts, [[(0, len(text))] for text in texts])
    assert not tokens._bytes.useful
    asked: list[Any] = []
    monkeypatch.setattr(TokenBytes, "ranges", lambda *_: asked.append(1))
    tokens.encode(texts, [[(0, len(text))] for text in texts])
    assert not asked


def test_rows_are_the_same_behind_a_process() -> None:
    learnt = [Encoded(np.arange(n, dtype=np.int32), np.arange(n) % 2 == 0, truncated=n == 2) for n in (1, 2, 5)]
    tagged = [Encoded(np.arange(n, dtype=np.int32), labels=np.full(3 - n, n, dtype=np.int32)) for n in (1, 2)]
    valued = [Encoded(np.ones(2, np.int32), types=np.zeros(2, np.uint8), value=v) for v in (0.5, 2.0)]
    for rows in (learnt, tagged, valued, []):
        again = FlatRows.of(rows).rows()
        assert len(again) == len(rows)
        for one, other in zip(rows, again, strict=True):
            assert (one.value, one.truncated) == (other.value, other.truncated)
            for name in ("ids", "mask", "labels", "types"):
                before, after = getattr(one, name), getattr(other, name)
                assert (before is None and after is None) or (
                    before.dtype == after.dtype and before.tolist() == after.tolist()
                )
