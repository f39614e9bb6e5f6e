"""Rows of token classification: words split into tokens, the tag on a word's first token, the others ignored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from peftcli.data.encode.encode_settings import EncodeSettings
from peftcli.data.encode.encoded import DROPPED, KEPT, MASKED, TRUNCATED, Encoded, Names, Outcome
from peftcli.data.read.records import RowError
from peftcli.data.recognition.examples import Example, Tagged, Tokens
from peftcli.data.store.labels import label_name
from peftcli.ignored_label import IGNORED


class TagEncoder:
    """Encodes words with tags; needs a tokenizer that says which word a token comes from."""

    def __init__(self, tokenizer: Any, settings: EncodeSettings, names: Names) -> None:
        self._tokenizer, self._settings, self._names = tokenizer, settings, names

    def encode(self, examples: Sequence[Example]) -> list[Outcome | RowError]:
        """Return the row of each example, or why there is none."""
        tagged = [example for example in examples if isinstance(example, Tagged)]
        rows = iter(self._tokenise(tagged))
        return [next(rows) if isinstance(example, Tagged) else self._given(example) for example in examples]

    def statistics(self) -> dict[str, int]:
        """Return nothing: alignment needs no check."""
        return {}

    def _tokenise(self, examples: Sequence[Tagged]) -> list[Outcome]:
        if not examples:
            return []
        settings = self._settings
        cut = settings.overflow in ("truncate", "split") or settings.predicting
        encoded = self._tokenizer(
            [_spaced(example.tokens) for example in examples],
            is_split_into_words=True,
            truncation=cut,
            max_length=settings.max_length if cut else None,
            return_overflowing_tokens=cut,
            return_attention_mask=False,
            verbose=False,
        )
        owners = encoded.get("overflow_to_sample_mapping") or range(len(examples))
        out = [Outcome() for _ in examples]
        around = self._tokenizer.num_special_tokens_to_add()
        lengths = [around] * len(examples)
        for place, owner in enumerate(owners):
            made = out[owner]
            lengths[owner] += len(encoded["input_ids"][place]) - around
            if made.rows:
                made.status = TRUNCATED
                made.rows[0].truncated = True
                if settings.overflow != "split" or settings.predicting:
                    continue
            ids = np.array(encoded["input_ids"][place], dtype=np.int32)
            words = encoded.word_ids(place)
            # a later piece may begin in the middle of a word, whose tag stood in the piece before
            done = (
                max((word for word in encoded.word_ids(place - 1) if word is not None), default=-1) if made.rows else -1
            )
            tags = examples[owner].tags
            count = float(len(examples[owner].tokens)) if tags is None else None
            made.rows.append(Encoded(ids, labels=self._labels(words, tags, done), value=count))
        return [replace(self._limit(made), tokens=length) for made, length in zip(out, lengths, strict=True)]

    def _labels(self, words: Sequence[int | None], tags: Sequence[Any] | None, done: int) -> Any:
        """Return a label for each token: the word's tag on its first token, else -100; so has a word whose tag that is.

        When predicting, the word's first token holds the word's number, so that predictions can be read per word; the
        row's value is the number of words, of which the last may have no token.

        Args:
            words: number of the word of each token.
            done: the last word that has its label already.
        """
        labels = np.full(len(words), IGNORED, dtype=np.int32)
        for place, word in enumerate(words):
            if word is not None and word > done:
                labels[place] = word if tags is None else self._number(tags[word])
                done = word
        return labels

    def _number(self, tag: Any) -> int:
        """Return a tag's number; -100 stays what it is, a tag that is not learnt."""
        return IGNORED if tag == IGNORED else self._names.number(label_name(tag))

    def _limit(self, made: Outcome) -> Outcome:
        length, longest = len(made.rows[0].ids), self._settings.max_length
        if length > longest:
            return Outcome(status=DROPPED, reason=f"{length} tokens, more than max_length {longest}")
        if not self._settings.predicting and all(_ignored(row) for row in made.rows):
            return Outcome(status=MASKED, reason="no word has both a token and a tag")
        return made

    def _given(self, example: Example) -> Outcome:
        assert isinstance(example, Tokens)  # the formats of this task make nothing else
        longest = self._settings.max_length
        ids = np.array(example.input_ids, dtype=np.int32)
        if self._settings.predicting:  # each token is a word
            marks, cut = np.arange(min(len(ids), longest), dtype=np.int32), len(ids) > longest
            row = Encoded(ids[:longest], labels=marks, value=float(len(ids)), truncated=cut)
            return Outcome([row], status=TRUNCATED if cut else KEPT)
        raw = example.labels if example.labels is not None else [IGNORED] * len(ids)
        numbers = [self._number(tag) for tag in raw]
        if len(ids) > longest and self._settings.overflow in ("drop", "error"):
            return Outcome(status=DROPPED, reason=f"{len(ids)} tokens, more than max_length {longest}")
        labels = np.array(numbers[:longest], dtype=np.int32)
        cut = len(ids) > longest
        row = Encoded(ids[:longest], labels=labels, truncated=cut)
        if _ignored(row):
            return Outcome(status=MASKED, reason="all labels are -100")
        return Outcome([row], status=TRUNCATED if cut else KEPT)


def _spaced(words: Sequence[str]) -> list[str]:
    """Return words with the space that stood before them: byte-level tokenizers have other tokens without it."""
    return [*words[:1], *(f" {word}" for word in words[1:])]


def _ignored(row: Encoded) -> bool:
    return row.labels is None or bool((row.labels == IGNORED).all())
