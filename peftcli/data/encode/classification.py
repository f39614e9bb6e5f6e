"""Rows of sequence classification: a text or a pair with the tokenizer's special tokens, and one label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from peftcli.data.encode.encode_settings import EncodeSettings
from peftcli.data.encode.encoded import DROPPED, KEPT, TRUNCATED, Encoded, Names, Outcome
from peftcli.data.encode.tokenise import FramedTokens, Piece
from peftcli.data.read.records import RowError
from peftcli.data.recognition.examples import Example, Labelled, Tokens
from peftcli.data.store.labels import label_list, label_name, label_number


class ClassificationEncoder:
    """Encodes texts with labels; a long text loses its end, of a pair the longer one does."""

    def __init__(self, tokenizer: Any, settings: EncodeSettings, names: Names) -> None:
        self._settings, self._names = settings, names
        self._framed = FramedTokens(tokenizer)
        self._types = "token_type_ids" in tokenizer.model_input_names

    def encode(self, examples: Sequence[Example]) -> list[Outcome | RowError]:
        """Return the rows of each example, or why there are none."""
        values = [self._value(example) for example in examples]
        labelled = [example for example in examples if isinstance(example, Labelled)]
        rows = iter(self._tokenise(labelled))
        out: list[Outcome | RowError] = []
        for example, value in zip(examples, values, strict=True):
            made = next(rows) if isinstance(example, Labelled) else self._given(example)
            if isinstance(value, RowError):
                out.append(value)
                continue
            made.value = value if isinstance(value, float) else None
            for row in made.rows:
                row.value, row.labels = value if isinstance(value, tuple) else (value, None)
            out.append(made)
        return out

    def statistics(self) -> dict[str, int]:
        """Return nothing: every token serves the label."""
        return {}

    def _value(self, example: Example) -> float | tuple[None, Any] | RowError | None:
        """Return the label as a number, as (None, numbers) for several labels, or what is wrong with it."""
        if self._settings.predicting:
            return None
        assert isinstance(example, Tokens | Labelled)  # the formats of labelled rows make nothing else
        raw = example.labels if isinstance(example, Tokens) else example.label
        try:
            raw = self._settings.form.read(raw) if self._settings.form else raw
            if self._settings.kind == "regression":
                return label_number(raw)
            if self._settings.kind == "multi_label":
                return None, np.array([self._names.number(name) for name in label_list(raw)], dtype=np.int32)
            return float(self._names.number(label_name(raw)))
        except RowError as error:
            return error

    def _tokenise(self, examples: Sequence[Labelled]) -> list[Outcome]:
        if not examples:
            return []
        settings = self._settings
        cut = settings.overflow == "truncate" or settings.predicting
        pairs = any(example.pair is not None for example in examples)
        found = self._framed.encode(
            [example.text for example in examples],
            [example.pair or "" for example in examples] if pairs else None,
            settings.max_length if cut else None,
        )
        made = []
        for pieces, example in zip(found, examples, strict=True):
            outcome = self._outcome(pieces)
            cut = len(pieces) > 1
            pair = (example.pair or "") if pairs else None
            outcome.tokens = self._framed.count(example.text, pair) if cut else len(pieces[0].ids)
            made.append(outcome)
        return made

    def _outcome(self, pieces: Sequence[Piece]) -> Outcome:
        """Return the row of a text, of which only the first piece is kept."""
        first, cut = pieces[0], len(pieces) > 1
        row = Encoded(first.ids, types=first.types if self._types else None, truncated=cut)
        return self._limit(Outcome([row], status=TRUNCATED if cut else KEPT))

    def _limit(self, made: Outcome) -> Outcome:
        length, longest = len(made.rows[0].ids), self._settings.max_length
        if length <= longest:
            return made
        return Outcome(status=DROPPED, reason=f"{length} tokens, more than max_length {longest}")

    def _given(self, example: Example) -> Outcome:
        assert isinstance(example, Tokens)  # the formats of this task make nothing else
        ids = np.array(example.input_ids, dtype=np.int32)
        longest = self._settings.max_length
        if len(ids) > longest and self._settings.overflow in ("drop", "error"):
            reason = f"{len(ids)} tokens, more than max_length {longest}"
            return Outcome(status=DROPPED, reason=reason, tokens=len(ids))
        cut = len(ids) > longest
        return Outcome([Encoded(ids[:longest], truncated=cut)], status=TRUNCATED if cut else KEPT, tokens=len(ids))
