"""Rows that are read as they are needed, for data that should not be prepared as a whole."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from peftcli.data.encode.encode_settings import EncodeSettings
from peftcli.data.encode.encode_worker import ChunkResult, Worker
from peftcli.data.encode.encoded import Encoded
from peftcli.data.read.records import BadRow, Record
from peftcli.data.read.row_errors import Errors
from peftcli.data.recognition.row_format import RecognisedFormat
from peftcli.data.rows.row_set import Row
from peftcli.data.store.empty_answers import EmptyAnswers
from peftcli.data.store.store_job import JUDGED, SourceJob
from peftcli.errors import Problem, UserError
from peftcli.ignored_label import IGNORED

BUFFER = 1000  # rows that are shuffled together
CHUNK = 64  # rows encoded at a time
KEPT_BACK = 4 * BUFFER  # rows that can be read again after they were passed


@dataclass(frozen=True)
class StreamSource:
    """One source of a stream and how often it is drawn from, relative to the others."""

    job: SourceJob
    weight: float = 1.0


@dataclass
class PassedRows:
    """What became of the rows that were read so far, each once: rows that are read again are not counted.

    Args:
        statuses: rows by status.
        reasons: why rows are not used, with their number.
        unused: what of the rows is not used, with the number of rows.
        empty: those of which an answer without text is learnt.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    unused: Counter[str] = field(default_factory=Counter)
    empty: EmptyAnswers = field(default_factory=EmptyAnswers)

    def add(self, result: ChunkResult) -> None:
        """Take in a chunk."""
        self.statuses.update(result.raw.statuses)
        self.reasons.update(result.reasons)
        self.unused.update(result.unused)
        self.empty.add(result.empty_answers)


class StreamedRows:
    """The first `count` rows of a shuffled stream that starts again when its files end.

    Rows are made in order: reading on is cheap, and reading back further than a few thousand rows starts over. The
    order depends on the seed only, so a resumed run reads on where it stopped.

    Args:
        sources: what to read.
        count: rows that will be asked for.
        skip: rows of the first source that belong to the validation set.
        errors: what becomes of broken rows. Rows are read again where a stream starts over, so each must count once.

    Attributes:
        passed: what became of the rows that were read so far.
    """

    def __init__(
        self,
        sources: Sequence[StreamSource],
        tokenizer: Any,
        settings: EncodeSettings,
        *,
        count: int,
        seed: int,
        skip: int = 0,
        errors: Errors,
    ) -> None:
        self._sources, self._tokenizer, self._settings = sources, tokenizer, settings
        self._count, self._seed, self._skip = count, seed, skip
        self._errors = errors
        self.passed, self._counts = PassedRows(), True
        self.formats: dict[str, str] = {}
        self._rows_of: dict[int, int] = {}
        """Rows that one pass over a source gives, by its place; of those that were read to their end."""
        self._rewind()

    def __len__(self) -> int:
        return self._count

    @property
    def lengths(self) -> npt.NDArray[np.int32]:
        """What a row can have at most: rows that are not read yet are not measured, and keep the stream's order."""
        return np.full(self._count, self._settings.max_length, dtype=np.int32)

    @property
    def target_lengths(self) -> npt.NDArray[np.int32]:
        """What a target can have at most, of rows that have one beside their input."""
        longest = self._settings.max_length
        return np.full(self._count, min(longest, self._settings.max_target or longest), dtype=np.int32)

    @property
    def skipped(self) -> int:
        """Broken rows that were passed over so far, each once."""
        return self._errors.count

    @property
    def broken(self) -> list[BadRow]:
        """The first `LISTED_SKIPS` of them."""
        return list(self._errors.skipped)

    def repeated(self, asked: int) -> list[str]:
        """Return a note on each source that is too short for so many rows, and so is used again.

        Sources that were not read to their end yet are left out.
        """
        weights = [source.weight for source in self._sources]
        notes = []
        for place, own in sorted(self._rows_of.items()):
            uses = asked * weights[place] / sum(weights) / own
            if uses > 1:
                title = self._sources[place].job.files.title
                rows = "1 row" if own == 1 else f"{own:,} rows"
                notes.append(f"the stream {title} has {rows} to train on, each of which is used {uses:.3g} times")
        return notes

    @property
    def read(self) -> int:
        """Rows that were asked for so far."""
        return self._next

    def __iter__(self) -> Iterator[Row]:
        return (self[number] for number in range(len(self)))

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < self._count:
            raise IndexError(index)
        if index < self._next - len(self._window):
            self._counts = False  # a pass that was broken off was counted up to there
            self._rewind()
        while self._next <= index:
            self._window.append(next(self._rows))
            self._next += 1
        return self._window[index - self._next + len(self._window)]

    def _rewind(self) -> None:
        self._rows = self._shuffled()
        self._window: deque[Row] = deque(maxlen=KEPT_BACK)
        self._next = 0

    def _shuffled(self) -> Iterator[Row]:
        """Yield rows in a random order: each new row takes the place of a random one of the buffer."""
        random = np.random.Generator(np.random.PCG64([self._seed, 0x57E4]))
        buffer: list[Row] = []
        for row in self._mixed(random):
            if len(buffer) < BUFFER:
                buffer.append(row)
                continue
            place = int(random.integers(BUFFER))
            buffer[place], out = row, buffer[place]
            yield out

    def _mixed(self, random: np.random.Generator) -> Iterator[Row]:
        """Yield rows of all sources, drawn by weight; each starts again when it ends."""
        weights = np.array([source.weight for source in self._sources])
        streams = [
            self._endless(place, source.job, self._skip if place == 0 else 0)
            for place, source in enumerate(self._sources)
        ]
        while True:
            yield next(streams[int(random.choice(len(streams), p=weights / weights.sum()))])

    def _started(self, job: SourceJob, recognised: RecognisedFormat) -> None:
        self.formats[job.files.title] = recognised.format.name

    def _endless(self, place: int, job: SourceJob, skip: int) -> Iterator[Row]:
        passed = self.passed if self._counts else None
        while True:
            found = 0
            arguments = (job, self._tokenizer, self._settings, self._errors)
            started = partial(self._started, job)
            for row in stream_rows(*arguments, skip=skip, passed=passed, started=started):
                found += 1
                yield row
            passed = None
            if not found:
                text = "no row of the stream has a token to train on"
                raise UserError(Problem(text, file=job.files.title, suggestion="see the rows with `peft inspect`"))
            self._rows_of[place] = found


class ListedRows:
    """A few rows in memory: the validation rows at the head of a stream."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows = list(rows)
        self.lengths = np.array([len(row.input_ids) for row in self._rows], dtype=np.int32)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        return self._rows[index]

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows)


def stream_rows(
    job: SourceJob,
    tokenizer: Any,
    settings: EncodeSettings,
    errors: Errors,
    *,
    skip: int = 0,
    only: int | None = None,
    started: Callable[[RecognisedFormat], None] | None = None,
    passed: PassedRows | None = None,
) -> Iterator[Row]:
    """Yield the rows of one pass over a source, each as it is encoded.

    Args:
        skip, only: readable rows of the file that are left out at its head, and how many of the rest to read.
        started: called once the format is recognised.
        passed: takes in what becomes of the rows.

    Raises:
        UserError: broken rows (with on_error: fail), or a format that does not fit.
    """
    records = _readable(job.files.rows(), errors)
    head = list(islice(records, JUDGED))
    if not head:
        errors.raise_if_any()
        return
    found = job.recognise(head, settings)
    if started:
        started(found)
    worker = Worker(tokenizer, settings, None)
    rest = islice(_chained(head, records), skip, None if only is None else skip + only)
    while chunk := list(islice(rest, CHUNK)):
        result = worker(found, chunk)
        if passed is not None:
            passed.add(result)
        errors.add(result.bad, encoding=True)
        errors.add(result.too_long, always=True)
        errors.raise_if_any()
        for encoded, origin in zip(result.rows, result.origins, strict=True):
            yield _row(encoded, result.raw.sources[origin], result.raw.rows[origin])


def _readable(rows: Iterable[Record | BadRow], errors: Errors) -> Iterator[Record]:
    for row in rows:
        if isinstance(row, BadRow):
            errors.add([row])
            errors.raise_if_any()
        else:
            yield row


def _chained(head: list[Record], rest: Iterator[Record]) -> Iterator[Record]:
    yield from head
    yield from rest


def _row(encoded: Encoded, source: str, number: int) -> Row:
    labels = encoded.labels
    if encoded.mask is not None:
        labels = np.where(encoded.mask, encoded.ids, np.int32(IGNORED))
    return Row(encoded.ids, labels, source, number, encoded.types)
