"""Prepare a stream: validation rows now, from its head or files of their own; training rows as they are needed."""

from __future__ import annotations

from peftcli.data.chat.stop_tokens import end_of_turn, stop_tokens
from peftcli.data.prepare_all_rows import RowPreparer
from peftcli.data.prepared_data import PreparedData
from peftcli.data.read.row_errors import Errors
from peftcli.data.read.sources import data_sources, source_keys
from peftcli.data.rows.row_set import Row, RowSet
from peftcli.data.rows.streaming import ListedRows, StreamedRows, StreamSource, stream_rows
from peftcli.data.store.data_report import Counts, DataReport, unused_note
from peftcli.data.store.store_job import SourceJob, source_jobs
from peftcli.data.store.stored_labels import counts_by_status, require_learning
from peftcli.errors import Problem, UserError
from peftcli.recipe.schema import DataSpec, TaskName
from peftcli.tasks.task_table import task_info

ENDLESS = 10**6
"""Rows of a stream when nobody says how many will be needed."""


def prepare_stream(preparer: RowPreparer, asked: int | None) -> PreparedData:
    """Return data whose training rows are read while training goes on.

    Args:
        preparer: has the recipe's block, the tokenizer and the settings.
        asked: training rows that will be needed, if that is known.

    Raises:
        UserError: what a stream cannot do, and what the rows at its head show.
    """
    spec, tokenizer, settings, count = preparer.spec, preparer.tokenizer, preparer.settings, asked or ENDLESS
    _check_streaming(spec, preparer.task)
    sources = data_sources(spec)
    jobs = source_jobs(spec, sources, source_keys(spec), "train")
    preparer.notes += [note for job in jobs for note in job.files.notes]
    sets: dict[str, Counts] = {}
    evidence: list[str] = []
    held_out = 0 if spec.validation is not None else int(spec.val_set_size)
    errors = Errors(spec.on_error, read_again=True)
    head = _head(jobs[0], preparer, held_out, evidence, errors)[: spec.max_eval_rows]
    validation: dict[str, RowSet] = preparer.own_validation(None, sets)
    if head:
        validation[""] = ListedRows(head)
        sets["validation"] = Counts(held_out, len(head))
    weighted = [StreamSource(job, source.weight) for job, source in zip(jobs, sources, strict=True)]
    rows = StreamedRows(weighted, tokenizer, settings, count=count, seed=preparer.seed, skip=held_out, errors=errors)
    first = rows[0]  # now, so that mistakes show before the model is loaded
    of_head = _head_notes(rows, jobs[0].files.title, spec, asked)
    template = settings.template
    known = rows.formats if len(rows.formats) == len(jobs) else {}
    report = DataReport(
        counts=sum(sets.values(), Counts()),
        sets=sets,
        format=next(iter(known.values()), ""),
        formats=[*dict.fromkeys(known.values())],
        evidence=evidence,
        template=template.name if template else None,
        cache="streaming",
        notes=[
            *preparer.notes,
            *of_head,
            "rows are read during training: they are neither counted nor cached",
        ],
        skipped=preparer.skipped,
        unused=dict(rows.passed.unused),
        split=spec.overflow == "split",
        train_rows=count,
        validation_rows={name: len(part) for name, part in validation.items()},
        longest=len(first.input_ids),
    )
    return PreparedData(
        rows,
        validation,
        None,
        report,
        template.name if template else None,
        template.text if template else None,
        stop_tokens(tokenizer, end_of_turn(tokenizer, settings.template)),
        preparer.contents | {job.files.title: found for job in jobs if (found := job.files.sampled_fingerprint())},
    )


def _head_notes(rows: StreamedRows, title: str, spec: DataSpec, asked: int | None) -> list[str]:
    """Return what a user should know of the rows at the head of a stream; those behind it are not judged.

    Args:
        asked: training rows that will be needed, if that is known.

    Raises:
        UserError: too many of them have no token to train on.
    """
    passed = rows.passed
    counts = counts_by_status(passed.statuses)
    require_learning(counts, passed.reasons, title, spec, " at the head of the stream")
    lost = counts.truncated or counts.kept < counts.rows
    return [
        *([f"at the head of the stream: {counts.line(split=spec.overflow == 'split')}"] if lost else []),
        *(f"{note} of the rows at the head of the stream" for note in unused_note(passed.unused)),
        *(f"at the head of the stream {note}" for note in passed.empty.note()),
        *(rows.repeated(asked) if asked else []),
    ]


def _head(job: SourceJob, preparer: RowPreparer, count: int, evidence: list[str], errors: Errors) -> list[Row]:
    """Return the rows made of the first `count` rows of a source, and put why its format was chosen into `evidence`."""
    settings, tokenizer = preparer.settings, preparer.tokenizer
    title = job.files.title
    found = stream_rows(
        job,
        tokenizer,
        settings,
        errors,
        only=count,
        started=lambda recognised: evidence.append(f"{title}: {recognised.evidence}"),
    )
    rows = list(found)
    if not evidence:
        raise UserError(
            Problem("there are no rows", file=title, suggestion="the file is empty, or holds only a header")
        )
    return rows


def _check_streaming(spec: DataSpec, task: TaskName) -> None:
    problems = []

    def refuse(key: str, message: str, suggestion: str) -> None:
        problems.append(Problem(f"data.streaming {message}", key=f"data.{key}", suggestion=suggestion))

    if task_info(task).has_labels:
        reason = f"does not work for {task}: its labels are counted before training"
        refuse("streaming", reason, "set data.streaming: false")
    if spec.validation is None and 0 < spec.val_set_size < 1:
        remedy = "0, a whole number (the first rows), or data.validation"
        refuse("val_set_size", "cannot split off a share of rows that are not counted", remedy)
    for key, given in (("packing", spec.packing), ("group_by", spec.group_by), ("max_rows", spec.max_rows)):
        if given:
            refuse(key, f"cannot be combined with {key}", f"leave out {key}, or data.streaming")
    if problems:
        raise UserError(problems)
