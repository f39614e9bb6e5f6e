"""Choose the format of a source from its first rows, and find its columns."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from peftcli.data.formats import preference, unpaired
from peftcli.data.read.nested_values import structure, with_paths
from peftcli.data.read.records import Record
from peftcli.data.recognition.format_table import BY_NAME, WITH_TEMPLATE, formats_for
from peftcli.data.recognition.row_format import Column, RecognisedFormat, RowFormat
from peftcli.data.recognition.row_template import RowTemplate
from peftcli.errors import Problem, UserError
from peftcli.recipe.schema import TaskName
from peftcli.suggestions import did_you_mean, nearest
from peftcli.tasks.task_info import RowKind
from peftcli.tasks.task_table import task_info

_LOOKED_INTO = 20  # rows whose objects are looked into for a message
_KEYS_SHOWN = 6  # keys of an object that a message names


def recognise(
    records: Sequence[Record],
    task: TaskName,
    *,
    wanted: str = "auto",
    columns: Mapping[str, str] | None = None,
    template: str | None = None,
    source: str = "",
    predicting: bool = False,
    of_source: str | None = None,
) -> RecognisedFormat:
    """Choose the format of some first rows and map its columns.

    Args:
        records: the first rows that could be read.
        task: decides which formats fit.
        wanted: the format the recipe asks for, or auto.
        columns: the recipe's mapping from our names to the file's.
        template: the recipe's text made of columns, which stands in for the prompt (or the text).
        source: the file, for messages.
        predicting: what would be learnt may be absent.
        of_source: the format that the kind of source decides, whatever the columns are.

    Raises:
        UserError: no format fits, or the recipe's format or columns do not.
    """
    columns = dict(columns or {})
    kind = task_info(task).rows
    parsed = RowTemplate.parse(template) if template else None
    paths = (*columns.values(), *(parsed.columns if parsed else ()))
    records = [replace(record, values=dict(with_paths(record.values, paths))) for record in records]
    present = _columns_of(records)
    kinds: tuple[RowKind, ...] = (kind, "text") if predicting and kind == "preferences" else (kind,)
    serving = _serving(kinds)
    formats = serving if wanted == "auto" else (*serving, BY_NAME[wanted])
    absent = _absent_targets(columns, present, formats) if predicting else frozenset()
    mapped = {ours: theirs for ours, theirs in columns.items() if ours not in absent}
    _check_mapped(mapped, present, source, _inside(records))
    if parsed:
        parsed.check(present, source)
    if wanted == "auto" and kind == "text" and not predicting:
        _refuse_preferences(records, present, columns, task, source)
    if wanted == "auto" and of_source is None and parsed and kind == "text":
        chosen = _templated(present, columns)
    elif wanted == "auto" and of_source is None:
        _check_ours(columns, task, serving)
        for chosen in serving:
            if chosen.has_columns and _fits(chosen, records, present, columns, parsed, predicting, absent):
                break
        else:
            raise _no_format(task, serving, present, source, _inside(records))
    else:
        chosen = BY_NAME[of_source if wanted == "auto" and of_source else wanted]
    _check_serves(chosen, task, columns, kinds)
    mapping = _map(chosen, present, columns, absent)
    missing = _missing(chosen, mapping, parsed, predicting)
    if missing:
        raise UserError(_missing_problem(chosen, missing, present, source))
    kind = kind if kind in chosen.makes else "text"
    return RecognisedFormat(chosen, kind, mapping, parsed, _evidence(chosen, mapping, records, parsed), predicting)


def _serving(kinds: Sequence[RowKind]) -> tuple[RowFormat, ...]:
    """Return our formats whose rows serve; to a prompt of any format of texts a model of preferences can answer."""
    return tuple(known for kind in kinds for known in formats_for(kind))


def _absent_targets(columns: Mapping[str, str], present: Sequence[str], formats: Sequence[RowFormat]) -> frozenset[str]:
    """Return our names of mapped columns that hold what is learnt in some format, and that the file lacks."""
    targets = {column.name for known in formats for column in known.columns if column.target}
    return frozenset(ours for ours, theirs in columns.items() if ours in targets and theirs not in present)


def _columns_of(records: Sequence[Record]) -> list[str]:
    names: dict[str, None] = {}
    for record in records:
        names.update(dict.fromkeys(record.values))
    return list(names)


def _fits(
    known: RowFormat,
    records: Sequence[Record],
    present: Sequence[str],
    columns: Mapping[str, str],
    template: RowTemplate | None,
    predicting: bool,
    absent: Collection[str],
) -> bool:
    """Whether a format's required columns are there, with values that look right, and it knows the mapped names."""
    if any(known.column(name) is None for name in columns):
        return False
    mapping = _map(known, present, columns, absent)
    return not _missing(known, mapping, template, predicting) and known.looks_right(mapping, records)


def _templated(present: Sequence[str], columns: Mapping[str, str]) -> RowFormat:
    """Return the first format whose answer is among the columns, when the template makes the prompt."""
    for known in WITH_TEMPLATE[:-1]:
        mapping = _map(known, present, columns)
        answers = [column.name for column in known.columns if column.target]
        if all(known.column(ours) for ours in columns) and all(answer in mapping for answer in answers):
            return known
    return WITH_TEMPLATE[-1]


def _map(
    known: RowFormat, present: Sequence[str], columns: Mapping[str, str], absent: Collection[str] = ()
) -> dict[str, str]:
    """Return our name to the file's column: what the recipe says, else the name itself, else a synonym.

    Args:
        absent: mapped names that the file may lack and does: they have no column.
    """
    mapping = {name: column for name, column in columns.items() if known.column(name) and name not in absent}
    taken = set(mapping.values())
    for column in known.columns:
        if column.name in mapping or column.name in absent:
            continue
        for name in (column.name, *column.synonyms):
            if name in present and name not in taken:
                mapping[column.name] = name
                taken.add(name)
                break
    return mapping


def _missing(
    known: RowFormat, mapping: Mapping[str, str], template: RowTemplate | None, predicting: bool
) -> list[Column]:
    """Return the columns that a format needs and a file lacks."""
    return [
        column
        for column in known.columns
        if column.required
        and column.name not in mapping
        and column.instead not in mapping
        and not (template and column.name == known.template_column)
        and not (predicting and column.target)
    ]


def _refuse_preferences(
    records: Sequence[Record], present: Sequence[str], columns: Mapping[str, str], task: TaskName, source: str
) -> None:
    """Raise where a file has two answers to each prompt: one of them would be learnt, the other one ignored."""
    _refuse_judged(records, present, columns, task, source)
    pair = [_map(preference.FORMAT, present, {}).get(name) for name in ("chosen", "rejected")]
    if None in pair or set(pair) & set(columns.values()):
        return
    raise UserError(
        Problem(
            f"the columns {' and '.join(map(str, pair))} look like preferences: a better and a worse answer to each "
            f"prompt; {task} would learn one of them alone",
            file=source or None,
            key="task",
            suggestion=f"write task: preference; to learn {pair[0]} alone, data.columns: {{completion: {pair[0]}}}",
        )
    )


def _refuse_judged(
    records: Sequence[Record], present: Sequence[str], columns: Mapping[str, str], task: TaskName, source: str
) -> None:
    """Raise where a column says of each answer whether it is a good one: bad ones would be learnt, too."""
    mapping = _map(unpaired.FORMAT, present, {})
    label, answer = mapping.get("label"), mapping.get("completion") or mapping.get("prompt")
    values = [record.values.get(label) for record in records if label is not None]
    if answer is None or not values or not all(isinstance(value, bool) for value in values) or all(values):
        return
    if answer in columns.values():
        return
    raise UserError(
        Problem(
            f"the column {label} says which answers are bad: {task} would learn these, too",
            file=source or None,
            key="task",
            suggestion="write task: preference with training.loss_type: kto; to learn all answers, name their column: "
            f"data.columns: {{{'completion' if 'completion' in mapping else 'messages'}: {answer}}}",
        )
    )


def _check_serves(chosen: RowFormat, task: TaskName, columns: Mapping[str, str], kinds: Sequence[RowKind]) -> None:
    """Raise when a format, ours or a plug-in's, does not serve a task, or lacks a column that the recipe maps."""
    if not set(kinds) & set(chosen.makes):
        raise UserError(
            Problem(
                f"format {chosen.name!r} does not fit task {task}",
                key="data.format",
                suggestion=f"formats of this task: {', '.join(known.name for known in _serving(kinds))}",
            )
        )
    unknown = [name for name in columns if chosen.column(name) is None]
    if unknown:
        valid = ", ".join(column.name for column in chosen.columns)
        raise UserError(
            Problem(
                f"the format {chosen.name} has no column {', '.join(unknown)}",
                key="data.columns",
                suggestion=f"its columns are {valid}; write data.columns as {{our name: the file's column}}",
            )
        )


def _check_ours(columns: Mapping[str, str], task: TaskName, formats: Sequence[RowFormat]) -> None:
    """Raise when the recipe maps a name that no format of the task has."""
    for name in columns:
        if not any(known.column(name) for known in formats):
            ours = dict.fromkeys(column.name for known in formats for column in known.columns)
            raise UserError(
                Problem(
                    f"no format of {task} has a column {name!r}",
                    key=f"data.columns.{name}",
                    suggestion=f"write data.columns as {{our name: the file's column}}; ours are {', '.join(ours)}",
                )
            )


def _no_format(
    task: TaskName, formats: Sequence[RowFormat], present: Sequence[str], source: str, inside: Sequence[str]
) -> UserError:
    shapes = "\n    ".join(f"{known.name}: {known.expected}" for known in formats)
    if separated := _other_separator(present):
        shapes = f"{separated}\n    {shapes}"
    if inside:
        shapes = f"inside the columns are {', '.join(inside)}, which data.columns can name\n    {shapes}"
    return UserError(
        Problem(
            f"no format fits the columns {', '.join(present) or '(none)'}",
            file=source or None,
            suggestion=f"name yours with data.columns, or set data.format. Known for {task}:\n    {shapes}",
        )
    )


def _other_separator(present: Sequence[str]) -> str:
    """Return what to do about a header that was not parted, as office programs of many countries write it; or ''."""
    if len(present) != 1 or not any(mark in present[0] for mark in ";\t|"):
        return ""
    return (
        "the header looks separated by something else than a comma: write the file with commas as .csv, "
        "or with tabs as .tsv"
    )


def _inside(records: Sequence[Record]) -> list[str]:
    """Return some dotted paths into the columns of the first rows that hold objects."""
    found: dict[str, None] = {}
    for record in records[:_LOOKED_INTO]:
        for column, value in record.values.items():
            inner = structure(value)
            if isinstance(inner, dict):
                found.update(dict.fromkeys(f"{column}.{key}" for key in list(inner)[:_KEYS_SHOWN]))
    return list(found)


def _check_mapped(columns: Mapping[str, str], present: Sequence[str], source: str, inside: Sequence[str]) -> None:
    """Raise when the recipe names a column that the file does not have."""
    problems = [
        Problem(
            f"no column {theirs!r}; the columns are {', '.join(present) or '(none)'}",
            file=source or None,
            key=f"data.columns.{ours}",
            suggestion=_question(theirs, [*present, *inside]),
        )
        for ours, theirs in columns.items()
        if theirs not in present
    ]
    if problems:
        raise UserError(problems)


def _missing_problem(known: RowFormat, missing: list[Column], present: list[str], source: str) -> Problem:
    names = ", ".join(column.name for column in missing)
    near = _question(missing[0].name, present)
    joined = f"columns found: {', '.join(present) or '(none)'}"
    hint = f"data.columns: {{{missing[0].name}: <the file's column>}}"
    hint = _other_separator(present) or hint
    return Problem(
        f"format {known.name} needs the column{'s' if len(missing) > 1 else ''} {names}; {joined}",
        file=source or None,
        suggestion=f"{near + '; ' if near else ''}{hint}. Expected: {known.expected}",
    )


def _question(name: str, present: Sequence[str]) -> str | None:
    return did_you_mean(nearest(name, present, most=3, cutoff=0.5)) or None


def _evidence(
    chosen: RowFormat, mapping: Mapping[str, str], records: Sequence[Record], template: RowTemplate | None
) -> str:
    """Return why the format was chosen, such as `conversations[].from/value -> sharegpt`."""
    parts = []
    for ours, theirs in mapping.items():
        inside = structure(next((record.values[theirs] for record in records if record.values.get(theirs)), None))
        shown = theirs
        if isinstance(inside, list) and inside and isinstance(inside[0], dict):
            shown = f"{theirs}[].{'/'.join(str(key) for key in list(inside[0])[:3])}"
        elif isinstance(inside, list):
            shown = f"{theirs}[]"
        parts.append(shown if ours == theirs else f"{shown} (as {ours})")
    if template:
        parts.append(f"template {template.text!r}")
    return f"{', '.join(parts)} -> {chosen.name}"
