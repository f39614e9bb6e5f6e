"""Rows of sequence-to-sequence models: input tokens and target tokens, each with the tokenizer's special tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from peftcli.data.encode.encode_settings import EncodeSettings
from peftcli.data.encode.encoded import DROPPED, MASKED, TRUNCATED, Encoded, Ints, Outcome
from peftcli.data.read.records import RowError
from peftcli.data.recognition.examples import Example, InputTarget, Tokens
from peftcli.ignored_label import IGNORED


class PairEncoder:
    """Encodes inputs and targets; both lose their end when they are longer than max_length, or a target's own bound."""

    def __init__(self, tokenizer: Any, settings: EncodeSettings) -> None:
        self._tokenizer, self._settings = tokenizer, settings

    def encode(self, examples: Sequence[Example]) -> list[Outcome | RowError]:
        """Return the row of each example, or why there is none."""
        texts = [example for example in examples if isinstance(example, InputTarget)]
        rows = iter(self._tokenise(texts))
        return [next(rows) if isinstance(example, InputTarget) else self._given(example) for example in examples]

    def statistics(self) -> dict[str, int]:
        """Return nothing: every token of a target is learnt."""
        return {}

    def _tokenise(self, examples: Sequence[InputTarget]) -> list[Outcome]:
        if not examples:
            return []
        inputs = self._tokenizer([example.input for example in examples], return_attention_mask=False, verbose=False)
        if self._settings.predicting:
            targets: list[list[int] | None] = [None] * len(examples)
        else:
            asked = [example.target or "" for example in examples]
            targets = self._tokenizer(text_target=asked, return_attention_mask=False, verbose=False)["input_ids"]
        return [self._row(ids, target) for ids, target in zip(inputs["input_ids"], targets, strict=True)]

    def _given(self, example: Example) -> Outcome:
        assert isinstance(example, Tokens)  # the formats of this task make nothing else
        return self._row(example.input_ids, example.labels)

    def _row(self, ids: list[int], target: list[int] | None) -> Outcome:
        longest = self._settings.max_length
        own = min(longest, self._settings.max_target or longest)
        most, cut = max(len(ids), len(target or ())), len(ids) > longest or len(target or ()) > own
        if cut and self._settings.overflow in ("drop", "error") and not self._settings.predicting:
            reason = f"{most} tokens, more than max_length {longest}"
            if most <= longest:
                reason = f"a target of {len(target or ())} tokens, and the model's decoder has {own} positions"
            return Outcome(status=DROPPED, reason=reason, tokens=most)
        if target is not None and all(label == IGNORED for label in target):
            return Outcome(status=MASKED, reason="the target has no token", tokens=most)
        labels = None if target is None else _cut(target, own)
        row = Encoded(_cut(ids, longest), labels=labels, truncated=cut)
        return Outcome([row], status=TRUNCATED if row.truncated else 0, tokens=most)


def _cut(ids: list[int], longest: int) -> Ints:
    """Return at most `longest` tokens; the last one stays, since it is the EOS that ends the text."""
    kept = ids if len(ids) <= longest else [*ids[: longest - 1], ids[-1]]
    return np.array(kept, dtype=np.int32)
