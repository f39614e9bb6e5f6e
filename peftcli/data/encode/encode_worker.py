"""Turns chunks of records into rows of tokens; one in every process that prepares data."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from peftcli.data.encode.causal import CausalEncoder
from peftcli.data.encode.classification import ClassificationEncoder
from peftcli.data.encode.encode_settings import EncodeSettings
from peftcli.data.encode.encoded import DROPPED, KEPT, MASKED, TRUNCATED, Encoded, Names, Outcome
from peftcli.data.encode.pairs import PairEncoder
from peftcli.data.encode.preferences import PreferenceEncoder
from peftcli.data.encode.tags import TagEncoder
from peftcli.data.read.nested_values import MISSING, value_at
from peftcli.data.read.records import BadRow, Record, RowError
from peftcli.data.recognition.examples import Example, Tokens, check_characters
from peftcli.data.recognition.row_format import RecognisedFormat
from peftcli.data.store.token_store import RawRows
from peftcli.tasks.task_info import RowKind


class Encoder(Protocol):
    """Makes rows of tokens of one kind of row."""

    def encode(self, examples: Sequence[Example]) -> list[Outcome | RowError]:
        """Return the rows of each example, or why there are none."""

    def statistics(self) -> dict[str, int]:
        """Return counts of how the learnt tokens were found, over all examples so far."""


ENCODERS: dict[RowKind, Callable[[Any, EncodeSettings, Names], Encoder]] = {
    "text": lambda tokenizer, settings, _: CausalEncoder(tokenizer, settings),
    "pairs": lambda tokenizer, settings, _: PairEncoder(tokenizer, settings),
    "labelled": ClassificationEncoder,
    "tagged": TagEncoder,
    "preferences": lambda tokenizer, settings, _: PreferenceEncoder(tokenizer, settings),
}
"""From a tokenizer, the settings and the chunk's label names to what encodes a kind of row."""


@dataclass(slots=True)
class ChunkResult:
    """What became of a chunk of rows; `unused` counts the rows by what of them is not used.

    `empty_answers` are the places of the rows of which an answer without text is learnt.
    """

    raw: RawRows
    rows: list[Encoded]
    origins: list[int]
    bad: list[BadRow]
    too_long: list[BadRow]
    reasons: Counter[str]
    names: list[str]
    unused: Counter[str] = field(default_factory=Counter)
    empty_answers: list[tuple[str, int]] = field(default_factory=list)


class Worker:
    """Turns chunks of records into rows; built once in every process.

    Args:
        tokenizer: a transformers tokenizer.
        settings: with the kind of label decided.
    """

    def __init__(self, tokenizer: Any, settings: EncodeSettings, group_by: str | None) -> None:
        self._settings, self._group_by = settings, group_by
        self._names = Names()
        self._vocabulary = len(tokenizer)
        self._encoder = ENCODERS[settings.rows](tokenizer, settings, self._names)

    def statistics(self) -> dict[str, int]:
        """Return the encoder's counts over all chunks."""
        return self._encoder.statistics()

    def __call__(self, found: RecognisedFormat, records: Sequence[Record]) -> ChunkResult:
        """Encode the rows of a chunk."""
        self._names.numbers.clear()
        kept: list[Record] = []
        groups: list[int] = []
        bad: list[BadRow] = []
        examples: list[Example] = []
        owners: list[int] = []
        for record in records:
            try:
                made = found.examples(record)
                self._check_vocabulary(made)
                group = self._group(record)
            except RowError as error:
                bad.append(error.at(record))
                continue
            examples += made
            owners += [len(kept)] * len(made)
            kept.append(record)
            groups.append(group)
        outcomes: list[list[Outcome]] = [[] for _ in kept]
        broken: dict[int, BadRow] = {}
        for owner, outcome in zip(owners, self._encoder.encode(examples) if examples else (), strict=True):
            if isinstance(outcome, RowError):
                broken.setdefault(owner, outcome.at(kept[owner]))
            else:
                outcomes[owner].append(outcome)
        result = self._collect(kept, groups, outcomes, broken, bad)
        if not self._settings.predicting:
            for number, record in enumerate(kept):
                columns = [] if number in broken else found.unused_columns(record)
                result.unused.update(f"column {name}" for name in columns if name != self._group_by)
        return result

    def _check_vocabulary(self, made: Sequence[Example]) -> None:
        """Raise a `RowError` for what a tokenizer cannot read, and for tokens that it lacks: both would fail later."""
        for example in made:
            check_characters(example)
            if isinstance(example, Tokens) and max(example.input_ids) >= self._vocabulary:
                message = f"input_ids holds {max(example.input_ids)}, but there are {self._vocabulary} tokens"
                raise RowError(message, "rows made with this model's tokenizer")

    def _collect(
        self,
        records: Sequence[Record],
        groups: Sequence[int],
        outcomes: Sequence[Sequence[Outcome]],
        broken: dict[int, BadRow],
        bad: list[BadRow],
    ) -> ChunkResult:
        """Put the outcomes of a chunk's rows together."""
        raw = RawRows([], [], [], [], [], [])
        result = ChunkResult(raw, [], [], bad + list(broken.values()), [], Counter(), self._names.all())
        sources: list[str] = []
        numbers: list[int] = []
        classes: list[int] = []
        statuses: list[int] = []
        kept_groups: list[int] = []
        lengths: list[int] = []
        for owner, (record, made) in enumerate(zip(records, outcomes, strict=True)):
            if owner in broken:
                continue
            rows = [row for outcome in made for row in outcome.rows]
            status = _status(made)
            for outcome in made:
                if outcome.reason and not outcome.rows:
                    # lengths differ from row to row; they are counted as one reason
                    result.reasons["longer than max_length" if outcome.status == DROPPED else outcome.reason] += 1
            if status == DROPPED and self._settings.overflow == "error":
                result.too_long.append(RowError(made[0].reason, "a shorter row").at(record))
            result.rows += rows
            result.origins += [len(sources)] * len(rows)
            sources.append(record.source)
            numbers.append(record.row)
            single = self._settings.kind == "single_label" and made and made[0].value is not None
            classes.append(int(made[0].value or 0) if single else -1)
            lengths.append(max([*(outcome.tokens for outcome in made), *(len(row.ids) for row in rows)], default=0))
            statuses.append(status)
            kept_groups.append(groups[owner])
            if any(outcome.empty_answer for outcome in made):
                result.empty_answers.append((record.source, record.row))
            if not self._settings.predicting:
                result.unused.update({name for outcome in made for name in outcome.unused})
        result.raw = RawRows(sources, numbers, classes, kept_groups, statuses, lengths)
        return result

    def _group(self, record: Record) -> int:
        if self._group_by is None:
            return 0
        value = value_at(record.values, self._group_by)
        if value is MISSING:
            raise RowError(f"no column {self._group_by!r} to group by", f"columns with {self._group_by!r}")
        text = json.dumps(value, sort_keys=True, default=str)
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _status(made: Sequence[Outcome]) -> int:
    """Return what became of a raw row: the best of its examples."""
    states = [outcome.status if outcome.rows or outcome.status in (DROPPED, MASKED) else KEPT for outcome in made]
    for status in (TRUNCATED, KEPT, DROPPED, MASKED):
        if status in states:
            return status
    return MASKED
