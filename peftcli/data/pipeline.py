"""From sources to a store: read in chunks, recognise the format, encode (in processes for large inputs), write."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from peftcli.data.chat import ChatRenderer
from peftcli.data.encode_causal import CausalEncoder
from peftcli.data.encode_classification import ClassificationEncoder
from peftcli.data.encode_pairs import PairEncoder
from peftcli.data.encode_tags import TagEncoder
from peftcli.data.encoded import DROPPED, KEPT, MASKED, TRUNCATED, Encoded, Names, Outcome
from peftcli.data.examples import Example, Tokens, build
from peftcli.data.formats import CLASSIFICATION, SEQ2SEQ, TOKENS, Plan, cell, recognise
from peftcli.data.labels import Kind, kind_of
from peftcli.data.records import BadRow, Record, RowError
from peftcli.data.settings import EncodeSettings
from peftcli.data.sources import SourceFiles
from peftcli.data.store import RawRows, StoreWriter
from peftcli.errors import Problem, UserError

PEEK = 500  # rows looked at to recognise the format and the kind of label
CHUNK_ROWS = 1000  # rows of a chunk: enough to keep every core busy in one batched call
CHUNK_CHARS = 4_000_000  # characters of a chunk at most, so that long rows do not fill the memory
SHOWN_ERRORS = 20  # broken rows shown before reading stops
LISTED_SKIPS = 10_000  # skipped rows that are listed by name; the rest is only counted
Progress = Callable[[int], None]


@dataclass(frozen=True)
class SourceJob:
    """One source with what the recipe says of its rows."""

    files: SourceFiles
    format: str = "auto"
    columns: dict[str, str] = field(default_factory=dict)
    template: str | None = None


@dataclass(frozen=True)
class StoreJob:
    """Everything that decides the content of one store, besides the tokenizer.

    Args:
        sources: in order; their rows lie one after another.
        settings: how examples become rows; its kind is None when it is to be read off the labels.
        on_error: what a broken row does.
        group_by: column whose value is remembered for the split.
    """

    sources: tuple[SourceJob, ...]
    settings: EncodeSettings
    on_error: Literal["fail", "skip"] = "fail"
    group_by: str | None = None

    def facts(self) -> dict[str, Any]:
        """Return what belongs into the cache key."""
        sources = [
            [job.files.kind, job.files.fingerprint(), job.format, sorted(job.columns.items()), job.template]
            for job in self.sources
        ]
        return {
            "sources": sources,
            "settings": self.settings.as_dict(),
            "on_error": self.on_error,
            "group_by": self.group_by,
        }


@dataclass(slots=True)
class ChunkResult:
    """What became of a chunk of rows."""

    raw: RawRows
    rows: list[Encoded]
    origins: list[int]
    bad: list[BadRow]
    too_long: list[BadRow]
    reasons: Counter[str]
    names: list[str]


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
        if settings.task == CLASSIFICATION:
            self._encoder: Any = ClassificationEncoder(tokenizer, settings, self._names)
        elif settings.task == TOKENS:
            self._encoder = TagEncoder(tokenizer, settings, self._names)
        elif settings.task == SEQ2SEQ:
            self._encoder = PairEncoder(tokenizer, settings)
        else:
            self._encoder = CausalEncoder(tokenizer, settings)

    def statistics(self) -> dict[str, int]:
        """Return the encoder's counts over all chunks."""
        found: dict[str, int] = self._encoder.statistics()
        return found

    def __call__(self, plan: Plan, records: Sequence[Record]) -> ChunkResult:
        """Encode the rows of a chunk."""
        self._names.numbers.clear()
        kept: list[Record] = []
        groups: list[int] = []
        bad: list[BadRow] = []
        examples: list[Example] = []
        owners: list[int] = []
        for record in records:
            try:
                made = build(plan, record, self._settings.task)
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
        return self._collect(kept, groups, outcomes, broken, bad)

    def _check_vocabulary(self, made: Sequence[Example]) -> None:
        """Raise a `RowError` for tokens that the tokenizer does not have; the embedding would fail on them much later."""
        for example in made:
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
        raw = RawRows([], [], [], [], [])
        result = ChunkResult(raw, [], [], bad + list(broken.values()), [], Counter(), self._names.all())
        sources: list[str] = []
        numbers: list[int] = []
        classes: list[int] = []
        statuses: list[int] = []
        kept_groups: list[int] = []
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
            single = self._settings.kind == "single_label" and rows and rows[0].value is not None
            classes.append(int(rows[0].value or 0) if single else -1)
            statuses.append(status)
            kept_groups.append(groups[owner])
        result.raw = RawRows(sources, numbers, classes, kept_groups, statuses)
        return result

    def _group(self, record: Record) -> int:
        if self._group_by is None:
            return 0
        if self._group_by not in record.values:
            raise RowError(f"no column {self._group_by!r} to group by", f"columns with {self._group_by!r}")
        text = json.dumps(cell(record.values, self._group_by), sort_keys=True, default=str)
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _status(made: Sequence[Outcome]) -> int:
    """Return what became of a raw row: the best of its examples."""
    states = [outcome.status if outcome.rows or outcome.status in (DROPPED, MASKED) else KEPT for outcome in made]
    for status in (TRUNCATED, KEPT, DROPPED, MASKED):
        if status in states:
            return status
    return MASKED


class Errors:
    """Broken rows as they come: collected and raised together, or skipped and listed."""

    def __init__(self, on_error: Literal["fail", "skip"]) -> None:
        self._on_error = on_error
        self.skipped: list[BadRow] = []
        self.count = 0
        self._fatal: list[BadRow] = []

    def add(self, bad: Iterable[BadRow], *, always: bool = False) -> None:
        """Take in broken rows; raises as soon as enough of them are there to show.

        Args:
            always: fail whatever the recipe says.
        """
        for one in bad:
            if self._on_error == "skip" and not always:
                self.count += 1
                if len(self.skipped) < LISTED_SKIPS:
                    self.skipped.append(one)
            else:
                self._fatal.append(one)
        if len(self._fatal) >= SHOWN_ERRORS:
            self.raise_if_any()

    def raise_if_any(self) -> None:
        """Raise a `UserError` with every row that was broken."""
        if self._fatal:
            shown = self._fatal[:SHOWN_ERRORS]
            problems = [_problem(bad) for bad in shown]
            last = problems[-1]
            hint = "data.on_error: skip passes broken rows over and lists them in the run directory"
            problems[-1] = replace(last, suggestion=f"{last.suggestion}\n    {hint}" if last.suggestion else hint)
            raise UserError(problems)


def _problem(bad: BadRow) -> Problem:
    lines = [f"row: {bad.excerpt}"] if bad.excerpt else []
    if bad.expected:
        lines.append(f"expected: {bad.expected}")
    return Problem(bad.message, file=bad.source, line=bad.row, suggestion="\n    ".join(lines) or None)


def build_store(
    directory: Path, job: StoreJob, tokenizer: Any, *, processes: int | None = None, progress: Progress | None = None
) -> None:
    """Read, encode and write every row of a job.

    Raises:
        UserError: broken rows, a format that does not fit, or no rows at all.
    """
    from peftcli.data.parallel import encode_chunks

    errors = Errors(job.on_error)
    notes: list[str] = []
    evidence: list[str] = []
    formats: list[str] = []
    counts: Counter[int] = Counter()
    reasons: Counter[str] = Counter()
    statistics: Counter[str] = Counter()
    names, settings, rows_read = Names(), job.settings, 0
    with StoreWriter(directory) as writer:
        for number, source in enumerate(job.sources):
            chunks = _chunks(source.files.rows(notes), errors)
            first = next(chunks, [])
            if not first:
                errors.raise_if_any()
                raise _no_rows(source.files, errors)
            plan = recognised(source, first[:PEEK], settings)
            settings = _with_kind(settings, plan, first[:PEEK])
            evidence.append(f"{source.files.title}: {plan.evidence}")
            formats.append(plan.format.name)
            arguments = (tokenizer, settings, job.group_by)
            results = encode_chunks(arguments, plan, chain([first], chunks), source.files.size, processes, statistics)
            for result in results:
                errors.add(result.bad)
                errors.add(result.too_long, always=True)
                _renumber(result, names, settings.kind)
                writer.add(result.raw, result.rows, result.origins, number)
                counts.update(result.raw.statuses)
                reasons.update(result.reasons)
                rows_read += len(result.raw.rows)
                if progress:
                    progress(rows_read)
        errors.raise_if_any()
        writer.finish(
            {
                "names": names.all(),
                "kind": settings.kind,
                "formats": formats,
                "evidence": evidence,
                "notes": notes,
                "counts": {str(status): count for status, count in counts.items()},
                "reasons": dict(reasons),
                "skipped": [bad.as_dict() for bad in errors.skipped],
                "skipped_count": errors.count,
                "statistics": dict(statistics),
                "inputs": input_names(job),
                "end_of_turn": end_of_turn(tokenizer, job.settings),
            }
        )


def input_names(job: StoreJob) -> list[str]:
    """Return the names under which rows of a job can appear, in a fixed order."""
    return [name for source in job.sources for name in (source.files.title, *map(str, source.files.files))]


def end_of_turn(tokenizer: Any, settings: EncodeSettings) -> str:
    """Return the token that ends an answer in the chat template, '' without one."""
    if settings.template is None:
        return ""
    around = ChatRenderer(tokenizer, settings.template, settings.train_on).around
    return around.end_of_turn if around and around.is_token else ""


def _chunks(rows: Iterable[Record | BadRow], errors: Errors) -> Iterator[list[Record]]:
    """Yield the readable rows in chunks; broken ones go to `errors`."""
    chunk: list[Record] = []
    chars = 0
    for row in rows:
        if isinstance(row, BadRow):
            errors.add([row])
            continue
        chunk.append(row)
        chars += sum(len(value) for value in row.values.values() if isinstance(value, str | list))
        if len(chunk) >= CHUNK_ROWS or chars >= CHUNK_CHARS:
            yield chunk
            chunk, chars = [], 0
    if chunk:
        yield chunk


def recognised(source: SourceJob, records: Sequence[Record], settings: EncodeSettings) -> Plan:
    """Return how a source's rows become examples, judged by its first rows."""
    return recognise(
        records,
        settings.task,
        wanted=source.format,
        columns=source.columns,
        template=source.template,
        source=source.files.title,
        predicting=settings.predicting,
        is_folders=source.files.kind == "folders",
    )


def _with_kind(settings: EncodeSettings, plan: Plan, records: Sequence[Record]) -> EncodeSettings:
    """Return the settings with the kind of label, read off the first rows if it is not given."""
    if settings.task == TOKENS:
        return replace(settings, kind="token")
    if settings.task != CLASSIFICATION or settings.kind is not None or settings.predicting:
        return settings
    column = plan.columns.get("label") or plan.columns.get("labels")
    values = [cell(record.values, column) for record in islice(records, PEEK)]
    kind: Kind = kind_of([value for value in values if value is not None])
    return replace(settings, kind=kind)


def _renumber(result: ChunkResult, names: Names, kind: Kind | None) -> None:
    """Change label numbers of a chunk into those of the store."""
    if not result.names:
        return
    numbers = np.array([names.number(name) for name in result.names], dtype=np.int32)
    for row in result.rows:
        if kind == "single_label" and row.value is not None:
            row.value = float(numbers[int(row.value)])
        elif row.labels is not None:
            row.labels = np.where(row.labels < 0, row.labels, numbers[np.maximum(row.labels, 0)]).astype(np.int32)
    if kind == "single_label":
        old = result.raw
        classes = [int(numbers[number]) if number >= 0 else -1 for number in old.classes]
        result.raw = RawRows(old.sources, old.rows, classes, old.groups, old.statuses)


def _no_rows(files: SourceFiles, errors: Errors) -> UserError:
    if errors.count:
        first = errors.skipped[0]
        text = f"all {errors.count} rows are broken; the first: {first.message}"
        return UserError(Problem(text, file=first.source, line=first.row, suggestion=f"expected: {first.expected}"))
    return UserError(
        Problem("there are no rows", file=files.title, suggestion="the file is empty, or holds only a header")
    )
