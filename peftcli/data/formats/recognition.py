"""What rows can look like: a table of formats, and how one is recognised from the columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from peftcli.data.formats.row_template import RowTemplate
from peftcli.data.read.records import Record
from peftcli.errors import Problem, UserError
from peftcli.recipe.schema import TaskName
from peftcli.suggestions import did_you_mean, nearest

CLASSIFICATION: TaskName = "sequence_classification"
CAUSAL: TaskName = "causal_lm"
SEQ2SEQ: TaskName = "seq2seq_lm"
TOKENS: TaskName = "token_classification"


@dataclass(frozen=True)
class Column:
    """One column of a format: our name, the names under which files have it, and whether it must be there."""

    name: str
    synonyms: tuple[str, ...] = ()
    required: bool = True
    target: bool = False  # what the model learns; absent when predicting


@dataclass(frozen=True)
class Format:
    """A shape of rows: for which tasks, with which columns; the order of the table is the order of recognition."""

    name: str
    tasks: tuple[TaskName, ...]
    columns: tuple[Column, ...]
    expected: str

    def column(self, name: str) -> Column | None:
        """Return the column of that name of ours."""
        return next((column for column in self.columns if column.name == name), None)


_TEXTS = ("sentence", "sentence1", "premise", "question1", "question", "query", "content", "review", "document")
_PAIRS = ("sentence2", "hypothesis", "question2", "answer", "passage", "context", "response")
_LABELS = ("labels", "class", "category", "target", "score", "rating", "stars", "sentiment")

FORMATS: tuple[Format, ...] = (
    Format(
        "pretokenized",
        (CAUSAL, SEQ2SEQ, CLASSIFICATION, TOKENS),
        (
            Column("input_ids"),
            Column("labels", ("label",), required=False, target=True),
            Column("attention_mask", required=False),
        ),
        '{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}',
    ),
    Format(
        "tokens_tags",
        (TOKENS,),
        (
            Column("tokens", ("words",)),
            Column("tags", ("ner_tags", "pos_tags", "chunk_tags", "labels", "ner", "pos", "label"), target=True),
        ),
        '{"tokens": ["Ada", "wrote"], "tags": ["B-PER", "O"]}',
    ),
    Format(
        "classification",
        (CLASSIFICATION,),
        (Column("text", _TEXTS), Column("text_pair", _PAIRS, required=False), Column("label", _LABELS, target=True)),
        '{"text": "...", "label": "sports"}; pairs also have "text_pair"; several labels are a list',
    ),
    Format(
        "folders",
        (CLASSIFICATION,),
        (Column("text"), Column("label", target=True)),
        "a directory with a folder for each class, and .txt files in it",
    ),
    Format(
        "alpaca",
        (CAUSAL, SEQ2SEQ),
        (
            Column("instruction"),
            Column("input", required=False),
            Column("output", ("response",), target=True),
            Column("instances", required=False),
            Column("system", required=False),
        ),
        '{"instruction": "...", "input": "...", "output": "..."}, or "instances": [{"input", "output"}]',
    ),
    Format(
        "input_target",
        (SEQ2SEQ,),
        (
            Column("input", ("source", "src", "document", "article", "text", "dialogue")),
            Column("target", ("tgt", "summary", "output", "highlights", "translation", "label"), target=True),
        ),
        '{"input": "...", "target": "..."}',
    ),
    Format(
        "messages",
        (CAUSAL,),
        (
            Column("messages", ("conversation", "conversations", "dialogue", "chat")),
            Column("tools", ("functions",), required=False),
        ),
        '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}',
    ),
    Format(
        "sharegpt",
        (CAUSAL,),
        (
            Column("conversations", ("conversation", "messages")),
            Column("system", required=False),
            Column("tools", required=False),
        ),
        '{"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}',
    ),
    Format(
        "prompt_completion",
        (CAUSAL, SEQ2SEQ),
        (Column("prompt", ("query",)), Column("completion", ("response", "chosen", "output"), target=True)),
        '{"prompt": "...", "completion": "..."}',
    ),
    Format(
        "question_answer",
        (CAUSAL, SEQ2SEQ),
        (Column("question", ("problem",)), Column("answer", ("solution", "answers"), target=True)),
        '{"question": "...", "answer": "..."}',
    ),
    Format("text", (CAUSAL,), (Column("text", ("content", "document"), target=True),), '{"text": "..."}'),
)
BY_NAME = {known.name: known for known in FORMATS}


@dataclass(frozen=True)
class Plan:
    """How the rows of one source become examples.

    Args:
        format: the shape of the rows.
        columns: our name to the file's column.
        template: text made of columns, in place of the prompt (or of the text).
        evidence: why this format, for the user.
        predicting: what would be learnt may be absent.
    """

    format: Format
    columns: Mapping[str, str]
    template: RowTemplate | None = None
    evidence: str = ""
    predicting: bool = False
    system: str | None = field(default=None)


def recognise(
    records: Sequence[Record],
    task: TaskName,
    *,
    wanted: str = "auto",
    columns: Mapping[str, str] | None = None,
    template: str | None = None,
    source: str = "",
    predicting: bool = False,
    is_folders: bool = False,
) -> Plan:
    """Choose the format of some first rows and map its columns.

    Args:
        records: the first rows that could be read.
        wanted: the format the recipe asks for, or auto.
        columns: the recipe's mapping from our names to the file's.

    Raises:
        UserError: no format fits, or the recipe's format or columns do not.
    """
    present = _columns_of(records)
    columns = dict(columns or {})
    _check_mapped(columns, present, source)
    parsed = RowTemplate.parse(template) if template else None
    if parsed:
        parsed.check(present, source)
    if wanted == "auto":
        wanted = "folders" if is_folders else _guess(records, task, present, columns, parsed, predicting, source)
    chosen = BY_NAME[wanted]
    if task not in chosen.tasks:
        fitting = [known.name for known in FORMATS if task in known.tasks]
        raise UserError(
            Problem(
                f"format {wanted!r} does not fit task {task}",
                key="data.format",
                suggestion=f"formats of this task: {', '.join(fitting)}",
            )
        )
    unknown = [name for name in columns if chosen.column(name) is None]
    if unknown:
        valid = ", ".join(column.name for column in chosen.columns)
        raise UserError(
            Problem(
                f"the format {wanted} has no column {', '.join(unknown)}",
                key="data.columns",
                suggestion=f"its columns are {valid}; write data.columns as {{our name: the file's column}}",
            )
        )
    mapping = _map(chosen, present, columns)
    missing = _missing(chosen, mapping, parsed, predicting)
    if missing:
        raise UserError(_missing_problem(chosen, missing, present, source))
    return Plan(chosen, mapping, parsed, _evidence(chosen, mapping, records, parsed), predicting)


def _columns_of(records: Sequence[Record]) -> list[str]:
    names: dict[str, None] = {}
    for record in records:
        names.update(dict.fromkeys(record.values))
    return list(names)


def _guess(
    records: Sequence[Record],
    task: TaskName,
    present: list[str],
    columns: Mapping[str, str],
    template: RowTemplate | None,
    predicting: bool,
    source: str,
) -> str:
    """Return the first format of the task whose required columns are there and whose mapped names it knows."""
    if template and task == CAUSAL:
        return _templated(present, columns)
    for name in columns:
        if not any(known.column(name) for known in FORMATS if task in known.tasks):
            ours = dict.fromkeys(column.name for known in FORMATS if task in known.tasks for column in known.columns)
            raise UserError(
                Problem(
                    f"no format of {task} has a column {name!r}",
                    key=f"data.columns.{name}",
                    suggestion=f"write data.columns as {{our name: the file's column}}; ours are {', '.join(ours)}",
                )
            )
    for known in FORMATS:
        if task not in known.tasks or known.name == "folders":
            continue
        if any(known.column(name) is None for name in columns):
            continue
        mapping = _map(known, present, columns)
        if not _missing(known, mapping, template, predicting) and _looks_right(known, mapping, records):
            return known.name
    shapes = "\n    ".join(f"{known.name}: {known.expected}" for known in FORMATS if task in known.tasks)
    raise UserError(
        Problem(
            f"no format fits the columns {', '.join(present) or '(none)'}",
            file=source or None,
            suggestion=f"name yours with data.columns, or set data.format. Known for {task}:\n    {shapes}",
        )
    )


def _templated(present: Sequence[str], columns: Mapping[str, str]) -> str:
    """Return the format whose answer column is there, when the template makes the prompt; else a text."""
    for name, answer in (("prompt_completion", "completion"), ("question_answer", "answer"), ("alpaca", "output")):
        known = BY_NAME[name]
        if all(known.column(ours) for ours in columns) and answer in _map(known, present, columns):
            return name
    return "text"


def _looks_right(known: Format, mapping: Mapping[str, str], records: Sequence[Record]) -> bool:
    """Whether values, not only names, fit: messages and sharegpt differ inside the list."""
    if known.name in ("messages", "sharegpt"):
        column = mapping["messages" if known.name == "messages" else "conversations"]
        key = "role" if known.name == "messages" else "from"
        for record in records:
            turns = record.values.get(column)
            if isinstance(turns, list) and turns and isinstance(turns[0], dict):
                return key in turns[0]
        return False
    if known.name == "tokens_tags":
        return any(isinstance(record.values.get(mapping["tokens"]), list) for record in records)
    return True


def _map(known: Format, present: Sequence[str], columns: Mapping[str, str]) -> dict[str, str]:
    """Return our name to the file's column: what the recipe says, else the name itself, else a synonym."""
    mapping = {name: column for name, column in columns.items() if known.column(name)}
    taken = set(mapping.values())
    for column in known.columns:
        if column.name in mapping:
            continue
        for name in (column.name, *column.synonyms):
            if name in present and name not in taken:
                mapping[column.name] = name
                taken.add(name)
                break
    return mapping


def _missing(known: Format, mapping: Mapping[str, str], template: RowTemplate | None, predicting: bool) -> list[Column]:
    filled = {TEMPLATED.get(known.name)} if template else set()
    if known.name == "alpaca" and "instances" in mapping:
        filled.add("output")
    return [
        column
        for column in known.columns
        if column.required
        and column.name not in mapping
        and column.name not in filled
        and not (predicting and column.target and known.name != "text")
    ]


TEMPLATED = {
    "prompt_completion": "prompt",
    "question_answer": "question",
    "alpaca": "instruction",
    "text": "text",
    "classification": "text",
    "folders": "text",
    "input_target": "input",
}
"""The column that `data.template` stands in for, by format."""


def _check_mapped(columns: Mapping[str, str], present: Sequence[str], source: str) -> None:
    """Raise when the recipe names a column that the file does not have."""
    problems = [
        Problem(
            f"no column {theirs!r}; the columns are {', '.join(present) or '(none)'}",
            file=source or None,
            key=f"data.columns.{ours}",
            suggestion=_question(theirs, present),
        )
        for ours, theirs in columns.items()
        if theirs not in present
    ]
    if problems:
        raise UserError(problems)


def _missing_problem(known: Format, missing: list[Column], present: list[str], source: str) -> Problem:
    names = ", ".join(column.name for column in missing)
    near = _question(missing[0].name, present)
    joined = f"columns found: {', '.join(present) or '(none)'}"
    hint = f"data.columns: {{{missing[0].name}: <the file's column>}}"
    if len(present) == 1 and any(mark in present[0] for mark in ";\t|"):
        hint = "the header looks separated by something else than a comma; write it as .csv or .tsv"
    return Problem(
        f"format {known.name} needs the column{'s' if len(missing) > 1 else ''} {names}; {joined}",
        file=source or None,
        suggestion=f"{near + '; ' if near else ''}{hint}. Expected: {known.expected}",
    )


def _question(name: str, present: Sequence[str]) -> str | None:
    return did_you_mean(nearest(name, present, most=3, cutoff=0.5)) or None


def _evidence(
    chosen: Format, mapping: Mapping[str, str], records: Sequence[Record], template: RowTemplate | None
) -> str:
    """Return why the format was chosen, such as `conversations[].from/value -> sharegpt`."""
    parts = []
    for ours, theirs in mapping.items():
        inside = next((record.values[theirs] for record in records if record.values.get(theirs)), None)
        shown = theirs
        if isinstance(inside, list) and inside and isinstance(inside[0], dict):
            shown = f"{theirs}[].{'/'.join(str(key) for key in list(inside[0])[:3])}"
        elif isinstance(inside, list):
            shown = f"{theirs}[]"
        parts.append(shown if ours == theirs else f"{shown} (as {ours})")
    if template:
        parts.append(f"template {template.text!r}")
    return f"{', '.join(parts)} -> {chosen.name}"


def cell(values: Mapping[str, Any], column: str | None) -> Any:
    """Return a value of a row, None when the column is absent."""
    return None if column is None else values.get(column)
