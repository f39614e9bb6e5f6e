"""From sources to a store: read in chunks, recognise the format, encode (in processes for large inputs), write."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from datetime import date
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from peftcli.data.chat.stop_tokens import end_of_turn
from peftcli.data.encode.encode_parallel import encode_chunks
from peftcli.data.encode.encode_settings import EncodeSettings
from peftcli.data.encode.encode_worker import ChunkResult
from peftcli.data.encode.encoded import Names
from peftcli.data.read.nested_values import MISSING, value_at
from peftcli.data.read.records import BadRow, Record
from peftcli.data.read.row_errors import Errors
from peftcli.data.read.source_files import SourceFiles
from peftcli.data.recognition.row_format import RecognisedFormat
from peftcli.data.store.empty_answers import EmptyAnswers
from peftcli.data.store.label_form import judge
from peftcli.data.store.labels import Kind
from peftcli.data.store.store_job import JUDGED, StoreJob
from peftcli.data.store.token_store import StoreWriter
from peftcli.errors import Problem, UserError

CHUNK_ROWS = 1000  # rows of a chunk: enough to keep every core busy in one batched call
CHUNK_CHARS = 4_000_000  # characters of a chunk at most, so that long rows do not fill the memory
Progress = Callable[[int], None]


def build_store(
    directory: Path, job: StoreJob, tokenizer: Any, *, processes: int | None = None, progress: Progress | None = None
) -> None:
    """Read, encode and write every row of a job.

    Raises:
        UserError: broken rows, a format that does not fit, or no rows at all.
    """
    errors = Errors(job.on_error)
    notes = _of_dates(job.settings)
    evidence: list[str] = []
    formats: list[str] = []
    counts, reasons = Counter[int](), Counter[str]()
    statistics, unused, empty = Counter[str](), Counter[str](), EmptyAnswers()
    names, settings, rows_read = Names(), job.settings, 0
    with StoreWriter(directory) as writer:
        for number, source in enumerate(job.sources):
            chunks = _chunks(source.files.rows(notes), errors)
            first = next(chunks, [])
            if not first:
                errors.raise_if_any()
                raise _no_rows(source.files, errors)
            found = source.recognise(first[:JUDGED], settings)
            settings = _with_kind(settings, found, first[:JUDGED], notes)
            evidence.append(f"{source.files.title}: {found.evidence}")
            formats.append(found.format.name)
            arguments = (tokenizer, settings, job.group_by)
            results = encode_chunks(arguments, found, chain([first], chunks), source.files.size, processes, statistics)
            for result in results:
                errors.add(result.bad)
                errors.add(result.too_long, always=True)
                _renumber(result, names, settings.kind)
                writer.add(result.raw, result.rows, result.origins, number)
                counts.update(result.raw.statuses)
                reasons.update(result.reasons)
                unused.update(result.unused)
                empty.add(result.empty_answers)
                rows_read += len(result.raw.rows)
                if progress:
                    progress(rows_read)
        errors.raise_if_any()
        writer.finish(
            {
                "names": names.all(),
                "kind": settings.kind,
                "form": settings.form.as_dict() if settings.form else None,
                "formats": formats,
                "evidence": evidence,
                "notes": notes,
                "counts": {str(status): count for status, count in counts.items()},
                "reasons": dict(reasons),
                "unused": dict(unused),
                "empty_answers": asdict(empty),
                "skipped": [bad.as_dict() for bad in errors.skipped],
                "skipped_count": errors.count,
                "statistics": dict(statistics),
                "inputs": job.input_names(),
                "end_of_turn": end_of_turn(tokenizer, job.settings.template),
            }
        )


def _of_dates(settings: EncodeSettings) -> list[str]:
    """Return a note if the rows can hold the date of today: stored rows keep it."""
    if settings.template is None or "strftime_now" not in settings.template.text:
        return []
    return [
        "the chat template can print the date (strftime_now): these rows were prepared on "
        f"{date.today().isoformat()} and hold that of this day; data.chat_template_kwargs can set another"
    ]


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


def _with_kind(
    settings: EncodeSettings, found: RecognisedFormat, records: Sequence[Record], notes: list[str]
) -> EncodeSettings:
    """Return the settings with the kind of label and how its cells are read, judged by the first rows if not given."""
    if settings.rows == "tagged":
        return replace(settings, kind="token")
    if settings.rows != "labelled" or settings.form is not None or settings.predicting:
        return settings
    if found.target_column is None:
        return settings
    values = [value_at(record.values, found.target_column) for record in islice(records, JUDGED)]
    cells = [value for value in values if value is not MISSING and value not in (None, "")]
    judged = judge(cells, settings.kind, settings.names)
    notes += judged.notes
    return replace(settings, kind=judged.kind, form=judged.form)


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
        result.raw = replace(old, classes=classes)


def _no_rows(files: SourceFiles, errors: Errors) -> UserError:
    if errors.count:
        first = errors.skipped[0]
        text = f"all {errors.count} rows are broken; the first: {first.message}"
        return UserError(Problem(text, file=first.source, line=first.row, suggestion=f"expected: {first.expected}"))
    return UserError(
        Problem("there are no rows", file=files.title, suggestion="the file is empty, or holds only a header")
    )
