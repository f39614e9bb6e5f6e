"""Texts to predict, whose file says nothing of the format that was trained: each is what the model is to go on from."""

from __future__ import annotations

from collections.abc import Set
from contextlib import suppress
from itertools import islice

from peftcli.data.chat.conversations import Conversation
from peftcli.data.other_file import FIRST_ROWS
from peftcli.data.read.records import Record, RowError
from peftcli.data.read.sources import data_sources, resolve_source
from peftcli.data.recognition.format_table import BY_NAME, formats_for
from peftcli.data.recognition.recognise import recognise
from peftcli.data.recognition.row_format import RecognisedFormat, RowFormat
from peftcli.data.recognition.row_template import RowTemplate
from peftcli.errors import UserError
from peftcli.recipe.schema import DataSpec, TaskName
from peftcli.tasks.task_info import RowKind
from peftcli.tasks.task_table import task_info

COLUMN = "text"
"""The column of a text: `--text` and the lines of a .txt file have no other."""

_INPUT: dict[RowKind, tuple[str, str]] = {
    "text": ("prompt_completion", "prompt"),
    "pairs": ("input_target", "input"),
    "labelled": ("classification", "text"),
    "tagged": ("tokens_tags", "tokens"),
}
"""The format and the column of ours that a text becomes where the trained format has no such column."""


def texts_as_inputs(
    spec: DataSpec, task: TaskName, present: Set[str], trained_format: str | None
) -> tuple[DataSpec, list[str]]:
    """Return the `data` block that reads a column `text` as the input that the model was trained on, and notes.

    Without that, a text for a model of conversations would be a document, which it continues without its chat
    template. A block that finds its columns in the file stays as it is.

    Args:
        spec: with which the file would be read.
        present: columns of the file.
        trained_format: format of the training rows, if it is known.
    """
    if COLUMN not in present or trained_format == "text" or spec.format == "text":
        return spec, []
    if spec.template is not None:
        return _in_template(spec, spec.template, present)
    kind = task_info(task).rows
    known, column = _input_of(kind, trained_format if spec.format == "auto" else spec.format)
    if spec.columns.get(column, column) in present or _reads_as_it_is(known, column, kind, present):
        return spec, []
    columns = {ours: theirs for ours, theirs in spec.columns.items() if theirs in present and known.column(ours)}
    changes = {"format": known.name, "columns": {**columns, column: COLUMN}}
    what = f"is read as the column {column} of the format {known.name}"
    if kind == "tagged":
        what = f"is divided into words, as the format {known.name} needs"
    elif column == "prompt":
        what = "is read as a prompt, or as a user turn if the run has a chat template"
    return spec.model_copy(update=changes), [f"each text {what}"]


def format_of_training(spec: DataSpec | None, task: TaskName) -> str | None:
    """Return the format of the first rows that a recipe names; None where they cannot be read or recognised."""
    found, _ = _first_rows(spec, task)
    return None if found is None else found.format.name


def prompts_are_texts(spec: DataSpec | None, task: TaskName) -> bool | None:
    """Return whether the prompts of a recipe's rows are texts, not messages, from the first row that can be read.

    None where none can.
    """
    found, rows = _first_rows(spec, task, predicting=True)
    if found is None:
        return None
    for row in rows:
        with suppress(RowError):
            made = found.examples(row)
            return not any(isinstance(one, Conversation) and one.plain is None for one in made)
    return None


def _first_rows(
    spec: DataSpec | None, task: TaskName, *, predicting: bool = False
) -> tuple[RecognisedFormat | None, list[Record]]:
    """Return the first rows that a recipe names, and their format; None where they cannot be read or recognised."""
    if spec is None or (spec.path is None and not spec.datasets):
        return None, []
    try:
        files = resolve_source(data_sources(spec)[0], purpose="train")
        rows = [row for row in islice(files.rows(), FIRST_ROWS) if isinstance(row, Record)]
        found = recognise(
            rows,
            task,
            wanted=spec.format,
            columns=spec.columns,
            template=spec.template,
            predicting=predicting,
            of_source=files.format,
        )
    except UserError:
        return None, []
    return found, rows


def _in_template(spec: DataSpec, template: str, present: Set[str]) -> tuple[DataSpec, list[str]]:
    """Put the text where the template has its only column, if the file lacks that."""
    parsed = RowTemplate.parse(template)
    columns = set(parsed.columns)
    if len(columns) != 1 or columns & present:
        return spec, []
    (column,) = columns
    literals = [(literal.replace("{", "{{").replace("}", "}}"), name) for literal, name in parsed.parts]
    text = "".join(literal if name is None else literal + "{" + COLUMN + "}" for literal, name in literals)
    return spec.model_copy(update={"template": text}), [f"each text is put where data.template has {{{column}}}"]


def _input_of(kind: RowKind, name: str | None) -> tuple[RowFormat, str]:
    """Return the format whose column of ours takes a text, and that column."""
    known = BY_NAME.get(name or "")
    if known is not None and known.has_columns and kind in known.makes and known.template_column is not None:
        return known, known.template_column
    name, column = _INPUT[kind]
    return BY_NAME[name], column


def _reads_as_it_is(known: RowFormat, column: str, kind: RowKind, present: Set[str]) -> bool:
    """Whether the file's columns already say what the input is."""
    if column == COLUMN:
        return True
    wanted = known.column(column)
    others = [each.columns[0] for each in formats_for(kind) if each.name != "text"]
    names = {name for each in (wanted, *others) if each is not None for name in (each.name, *each.synonyms)}
    own = wanted is not None and COLUMN in wanted.synonyms
    return own or bool((names - {COLUMN}) & present)
