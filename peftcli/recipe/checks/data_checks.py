"""The rows of a recipe: options of `data` that contradict each other or the task."""

from __future__ import annotations

import re
import string
from collections.abc import Iterator

from peftcli.recipe.pydantic_messages import Finding
from peftcli.recipe.schema import DataSource, DataSpec, Recipe
from peftcli.recipe.vocabulary import Names
from peftcli.recipe.yaml.yaml_lines import Key


def check_data(recipe: Recipe, names: Names) -> Iterator[Finding]:
    """Yield what contradicts itself in `data`, or contradicts the task."""
    data = recipe.data
    if data is None:
        return
    if data.path is not None and data.datasets is not None:
        yield Finding(("data", "datasets"), "data.path and data.datasets are both given", "move the path into datasets")
    if data.path is None and not data.datasets:
        yield Finding(("data", "path"), "data.path is missing", "a file, directory, hub id or package:NAME/PATH")
    if data.path is not None and not data.path.strip():
        yield Finding(("data", "path"), "data.path is empty", "a file, directory, hub id or package:NAME/PATH")
    if data.val_set_size >= 1 and not float(data.val_set_size).is_integer():
        yield Finding(
            ("data", "val_set_size"),
            f"data.val_set_size = {data.val_set_size:g}; expected a share below 1, or a whole number of rows",
            f"write {data.val_set_size / 100:g} for {data.val_set_size:g} percent" if data.val_set_size < 100 else None,
        )
    if data.packing and not names.tasks[recipe.task].packs:
        able = " and ".join(name for name, info in names.tasks.items() if info.packs)
        yield Finding(
            ("data", "packing"), f"data.packing is for {able}; the task is {recipe.task}", "write packing: false"
        )
    if data.streaming and recipe.training.max_steps is None:
        yield Finding(
            ("data", "streaming"),
            "data.streaming needs training.max_steps, because the rows are not counted",
            "write max_steps under `training:`",
        )
    yield from _data_for_task(recipe, data, names)
    yield from _validation(data)
    yield from _template(data)


def _data_for_task(recipe: Recipe, data: DataSpec, names: Names) -> Iterator[Finding]:
    task = names.tasks[recipe.task]
    allowed = {name for name, known in names.formats.items() if task.rows in known.makes}
    for key, name in _formats(data):
        if name not in allowed and not (name in names.formats and task.rows in names.formats[name].makes):
            reason = f"the format {name} does not serve the task {recipe.task}"
            yield Finding(key, reason, f"one of auto, {', '.join(sorted(allowed))}")
    if task.reads != "text":
        for field, default in (("train_on", "completions"), ("chat_template", None)):
            if getattr(data, field) != default:
                yield Finding(("data", field), f"data.{field} does nothing for the task {recipe.task}", "leave it out")
    if data.stratify and task.label_kind != "single_label":
        yield Finding(("data", "stratify"), f"data.stratify needs classes; the task is {recipe.task}", "leave it out")
    if data.stratify and recipe.model.problem_type in ("regression", "multi_label"):
        yield Finding(("data", "stratify"), f"data.stratify needs single labels, not {recipe.model.problem_type}")
    if data.overflow == "split" and task.why_not_split:
        reason = f"data.overflow = split would {task.why_not_split}"
        yield Finding(("data", "overflow"), reason, "truncate, drop or error")


def _formats(data: DataSpec) -> Iterator[tuple[Key, str]]:
    if data.format != "auto":
        yield ("data", "format"), data.format
    for key, source in _sources(data):
        if source.format not in (None, "auto"):
            yield (*key, "format"), str(source.format)


def _sources(data: DataSpec) -> Iterator[tuple[Key, DataSource]]:
    """Yield the sources that are written as blocks, with their keys: `data.datasets.0`, `data.validation`."""
    for index, source in enumerate(data.datasets or ()):
        yield ("data", "datasets", index), source
    if isinstance(data.validation, DataSource):
        yield ("data", "validation"), data.validation
    for index, source in enumerate(data.validation if isinstance(data.validation, list) else ()):
        yield ("data", "validation", index), source


def _validation(data: DataSpec) -> Iterator[Finding]:
    if not isinstance(data.validation, list):
        return
    if not data.validation:
        yield Finding(("data", "validation"), "data.validation is an empty list", "leave it out to split the data")
    names = [source.name for source in data.validation]
    for index, name in enumerate(names):
        place: Key = ("data", "validation", index)
        if name is None and len(names) > 1:
            yield Finding((*place, "name"), "several validation sets need a name each", "it appears in eval_NAME_loss")
        elif name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
            yield Finding((*place, "name"), f"data.validation.{index}.name = {name!r}; expected letters, digits, _ - .")
        elif name is not None and name in names[:index]:
            yield Finding((*place, "name"), f"two validation sets are called {name!r}", "names must differ")


def _template(data: DataSpec) -> Iterator[Finding]:
    if data.template is None:
        return
    key: Key = ("data", "template")
    try:
        fields = [field for _, field, _, _ in string.Formatter().parse(data.template) if field is not None]
    except ValueError as error:
        yield Finding(key, f"data.template: {error}", "columns stand in braces: {question}; double them for a brace")
        return
    if not fields:
        yield Finding(key, "data.template names no column", "columns stand in braces: 'Q: {question} A:'")
    if any(not field or field.isdigit() for field in fields):
        yield Finding(key, "data.template has braces without a column's name", "write the name: {question}")
