"""Rows of preference tuning: the tokens of both sequences of a pair, chosen before rejected, and which are compared.

A single answer is one such sequence: what says whether it is good or bad is its side, that of a chosen or of a rejected
answer.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from peftcli.data.encode.causal import CausalEncoder
from peftcli.data.encode.encode_settings import EncodeSettings
from peftcli.data.encode.encoded import DROPPED, MASKED, TRUNCATED, Encoded, Outcome
from peftcli.data.encode.overflow import CONTEXT
from peftcli.data.read.records import RowError
from peftcli.data.recognition.examples import Example, Judged, Preferred

CHOSEN, REJECTED = 0, 1
"""Sides: of the sequence of a chosen, or of a good answer, and of a rejected, or of a bad one."""


class PreferenceEncoder:
    """Encodes each side of a pair as a row of a causal model, and cuts both alike."""

    def __init__(self, tokenizer: Any, settings: EncodeSettings) -> None:
        self._settings = settings
        self._tied = self._behind = 0
        whole = settings if settings.predicting else replace(settings, max_length=sys.maxsize, overflow="error")
        self._sides = CausalEncoder(tokenizer, whole)

    def statistics(self) -> dict[str, int]:
        """Return how the answers' tokens were found and checked, and how many pairs have no better answer by score."""
        return {**self._sides.statistics(), "pairs_tied": self._tied, "pairs_behind": self._behind}

    def _count(self, examples: Sequence[Example]) -> None:
        """Count the pairs whose scores do not put the chosen answer ahead."""
        ahead = [each.ahead for each in examples if isinstance(each, Preferred) and each.ahead is not None]
        self._tied += sum(score == 0 for score in ahead)
        self._behind += sum(score < 0 for score in ahead)

    def encode(self, examples: Sequence[Example]) -> list[Outcome | RowError]:
        """Return the row of each pair, or why there is none; of a prediction the prompts."""
        self._count(examples)
        sides: list[Example] = []
        for example in examples:
            if isinstance(example, Preferred):
                sides += [example.chosen, example.rejected]
            else:
                sides.append(example.conversation if isinstance(example, Judged) else example)
        made = iter(self._sides.encode(sides))
        return [self._row(example, made) for example in examples]

    def _row(self, example: Example, made: Iterator[Outcome | RowError]) -> Outcome | RowError:
        if isinstance(example, Preferred):
            return self._pair(next(made), next(made))
        return self._single(next(made), example.good) if isinstance(example, Judged) else next(made)

    def _single(self, answer: Outcome | RowError, good: bool) -> Outcome | RowError:
        if isinstance(answer, RowError):
            return answer
        if not answer.rows:
            return RowError(f"the answer has nothing to learn from: {answer.reason}", "a prompt and an answer")
        return self._fitted([answer.rows[0]], answer.unused, [CHOSEN if good else REJECTED])

    def _pair(self, chosen: Outcome | RowError, rejected: Outcome | RowError) -> Outcome | RowError:
        for name, side in (("chosen", chosen), ("rejected", rejected)):
            if isinstance(side, RowError):
                return side
            if not side.rows:
                return RowError(f"the {name} side has nothing to compare: {side.reason}", "two answers")
        assert isinstance(chosen, Outcome) and isinstance(rejected, Outcome)
        rows = [chosen.rows[0], rejected.rows[0]]
        if np.array_equal(rows[0].ids, rows[1].ids):
            return RowError("chosen and rejected are the same tokens: there is nothing to prefer", "two answers")
        unused = (*chosen.unused, *(name for name in rejected.unused if name not in chosen.unused))
        return self._fitted(rows, unused, [CHOSEN, REJECTED])

    def _fitted(self, rows: list[Encoded], unused: tuple[str, ...], sides: list[int]) -> Outcome | RowError:
        """Return sequences of one prompt as a row, cut alike where they are too long.

        Args:
            sides: of each sequence.
        """
        tokens = sum(len(row.ids) for row in rows)
        most, longest = max(len(row.ids) for row in rows), self._settings.max_length
        if most > longest and self._settings.overflow in ("drop", "error"):
            reason = f"{most} tokens of the longer side, more than max_length {longest}"
            return Outcome(status=DROPPED, reason=reason, tokens=tokens, unused=unused)
        prompt = max(_prompt(row) for row in rows)
        if prompt >= longest:
            reason = f"the prompt alone takes {prompt} tokens, and max_length is {longest}"
            return RowError(reason, "a shorter prompt, or a larger data.max_length")
        cut = most > longest
        if cut:
            rows = self._cut(rows, most - longest)
            if len(rows) > 1 and np.array_equal(rows[0].ids, rows[1].ids):
                reason = f"max_length {longest} cuts off everything in which the answers differ"
                return Outcome(status=MASKED, reason=reason, tokens=tokens, unused=unused)
        return Outcome([_joined(rows, sides, truncated=cut)], TRUNCATED if cut else 0, "", unused, tokens)

    def _cut(self, rows: Sequence[Encoded], excess: int) -> list[Encoded]:
        """Return both sides without the same first tokens of the prompt, and then without what is too long at the end.

        A quarter of a row stays for the prompt, and the tokenizer's own first tokens.
        """
        longest, keep = self._settings.max_length, self._sides.first_kept(rows[0].ids)
        prompt = min(_prompt(row) for row in rows)
        gone = min(excess, max(0, prompt - max(keep, longest // CONTEXT)))
        return [_without(row, keep, gone, longest) for row in rows]


def _prompt(row: Encoded) -> int:
    """Return how many tokens stand before the answer."""
    assert row.mask is not None  # rows of a causal model have one
    return int(np.argmax(row.mask))


def _without(row: Encoded, keep: int, gone: int, longest: int) -> Encoded:
    assert row.mask is not None  # rows of a causal model have one
    ids = np.concatenate((row.ids[:keep], row.ids[keep + gone :]))[:longest]
    return Encoded(ids, np.concatenate((row.mask[:keep], row.mask[keep + gone :]))[:longest])


def _joined(rows: Sequence[Encoded], sides: Sequence[int], *, truncated: bool) -> Encoded:
    masks = [row.mask for row in rows if row.mask is not None]
    types = np.repeat(np.array(sides, dtype=np.uint8), [len(row.ids) for row in rows])
    ids = np.concatenate([row.ids for row in rows])
    return Encoded(ids, np.concatenate(masks), types=types, truncated=truncated)
