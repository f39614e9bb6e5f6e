"""Check the files that a recipe names (model, data, output directory) before torch is imported.

Only local files are checked; hub ids are looked up when training starts. Problems have the recipe's line.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from peftcli.errors import Problem, UserError
from peftcli.locations import expand_location, expanded, resolve_location
from peftcli.models.config_facts import number_of_layers, task_refusal, unknown_model_type
from peftcli.models.load.config_limits import CONFIG, checked_config
from peftcli.models.load.model_files import find_source
from peftcli.recipe.load_recipe import LoadedRecipe
from peftcli.recipe.method_facts import Registry
from peftcli.recipe.method_params import TargetedParams
from peftcli.recipe.schema import DataSource, DataSpec
from peftcli.recipe.vocabulary import Names
from peftcli.suggestions import did_you_mean, nearest

_HEAVY_FILES = (".parquet", ".arrow")  # reading them imports pyarrow and numpy
_FIRST_ROWS = 8
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "spiece.model", "vocab.txt", "vocab.json")


def check_surroundings(loaded: LoadedRecipe, names: Names) -> list[Problem]:
    """Return the problems of the files that a recipe names.

    Args:
        loaded: a checked recipe, or one with mistakes; what depends on a wrong key is not checked.
        names: what a recipe can name.
    """
    problems = [*_model(loaded, names.methods), *_run_length(loaded, names.methods), *_metrics(loaded, names)]
    if loaded.recipe.data is not None:
        problems += _data(loaded, loaded.recipe.data)
    if loaded.recipe.method.init_from is not None:
        problems += _warm_start(loaded, loaded.recipe.method.init_from)
    output = Path(loaded.recipe.output_dir or ".")
    if output.exists() and not output.is_dir():
        problems.append(loaded.problem("output_dir", f"output_dir {output} is a file", "name a directory"))
    return problems


def _model(loaded: LoadedRecipe, registry: Registry) -> Iterator[Problem]:
    spec = loaded.recipe.model
    try:
        source = find_source(spec.name_or_path)
    except UserError as error:
        yield from _placed(loaded, "model.name_or_path", _beside_the_recipe(loaded, spec.name_or_path, error))
        return
    if source.kind != "hub" and spec.revision is not None:
        yield loaded.problem(
            "model.revision", "model.revision is for models of the hub; this one is local", "remove it"
        )
    if source.kind != "directory" or source.path is None:
        return
    try:
        config = checked_config(source.path / CONFIG)
    except UserError as error:
        for problem in error.problems:
            about = str(replace(problem, suggestion=None))
            yield loaded.problem("model.name_or_path", about, problem.suggestion)
        return
    if not any((source.path / file).exists() for file in _TOKENIZERS):
        remedy = f"expected one of {', '.join(_TOKENIZERS)}"
        yield loaded.problem("model.name_or_path", f"{spec.name_or_path} contains no tokenizer", remedy)
    yield from _config_problems(loaded, registry, config)


def _config_problems(loaded: LoadedRecipe, registry: Registry, config: Mapping[str, Any]) -> Iterator[Problem]:
    recipe = loaded.recipe
    unknown = unknown_model_type(config)
    if unknown:
        yield loaded.problem("model.name_or_path", *unknown)
        return
    refusal = task_refusal(config, recipe.task)
    if refusal:
        yield loaded.problem("task", *refusal)
    layers = number_of_layers(config)
    chosen = recipe.method.layers_to_transform if isinstance(recipe.method, TargetedParams) else None
    wanted = [chosen] if isinstance(chosen, int) else chosen or []
    if layers is not None and any(layer >= layers for layer in wanted):
        message = f"method.layers_to_transform has {max(wanted)}, but the model has {layers} blocks"
        yield loaded.problem("method.layers_to_transform", message, f"expected 0 <= value <= {layers - 1}")
    method = registry.find(recipe.method.name)
    for reason in method.check_config(config, recipe.method) if method is not None else ():
        yield loaded.problem(f"method{_named_key(reason, recipe.method)}", reason)


def _run_length(loaded: LoadedRecipe, registry: Registry) -> Iterator[Problem]:
    """Yield hyper-parameters for which `max_steps` is too small; other runs are checked when their rows are counted."""
    method, steps = loaded.recipe.method, loaded.recipe.training.max_steps
    checks = registry.find(method.name)
    if checks is None or steps is None or any(key.split(".")[0] == "method" for key in loaded.wrong):
        return
    for reason in checks.check_run(method, steps):
        yield loaded.problem(f"method{_named_key(reason, method)}", reason)


def _metrics(loaded: LoadedRecipe, names: Names) -> Iterator[Problem]:
    """Yield metrics that cannot be computed for any kind of the task's predictions: their package is missing."""
    from peftcli.tasks.metric_table import metric_problems

    task = names.tasks.get(loaded.recipe.task)
    if task is None:
        return
    for index, name in enumerate(loaded.recipe.training.metrics):
        found = [metric_problems([name], kind) for kind in task.predictions]
        if name != "loss" and found and all(found):
            yield loaded.problem(f"training.metrics.{index}", found[0][0].message, found[0][0].suggestion)


def _named_key(reason: str, params: Any) -> str:
    """Return the hyper-parameter that a reason starts with, such as `.r`, or nothing."""
    first = reason.split(" ", 1)[0].strip(":`").removeprefix("method.")
    return f".{first}" if first in type(params).model_fields else ""


def _data(loaded: LoadedRecipe, data: DataSpec) -> Iterator[Problem]:
    for key, source in _sources(data):
        try:
            paths = expand_location(source.path)
            if paths is not None and not _rows_unknown(loaded.wrong):
                _first_rows_fit(loaded, data, source, key)
        except UserError as error:
            yield from _placed(loaded, key, _beside_the_recipe(loaded, source.path, error))
    if data.chat_template is not None:
        yield from _chat_template(loaded, data.chat_template)


def _rows_unknown(wrong: Iterable[str]) -> bool:
    """Return whether a wrong key decides how rows are read."""
    words = ["task", "data.format", "data.columns", "data.template", "data.type"]
    blocks = (".".join(key.split(".")[:2]) for key in wrong)
    return any(nearest(block, words, cutoff=0.8) for block in blocks)


def _chat_template(loaded: LoadedRecipe, wanted: str) -> Iterator[Problem]:
    from peftcli.data.chat.named_templates import PLAIN, template_names

    known = [*template_names(), PLAIN]
    if wanted not in known and not expanded(wanted).is_file():
        remedy = did_you_mean(nearest(wanted, known), f"known: {', '.join(known)}; or a Jinja file")
        yield loaded.problem("data.chat_template", f"there is no chat template and no file {wanted!r}", remedy)


def _sources(data: DataSpec) -> Iterator[tuple[str, DataSource]]:
    """Yield every source of rows with the key of its path, training rows first."""
    if data.path is not None and data.path.strip():
        yield "data.path", DataSource(path=data.path, config=data.config, split=data.split)
    for index, source in enumerate(data.datasets or ()):
        yield f"data.datasets.{index}.path", source
    if isinstance(data.validation, DataSource):
        yield "data.validation.path", data.validation
    for index, source in enumerate(data.validation if isinstance(data.validation, list) else ()):
        yield f"data.validation.{index}.path", source


def _first_rows_fit(loaded: LoadedRecipe, data: DataSpec, source: DataSource, key: str) -> None:
    """Read the first rows of a local source and check that they have a format of the task.

    Raises:
        UserError: there are no rows, or they have no format of the task.
    """
    from peftcli.data.read.records import Record
    from peftcli.data.read.sources import resolve_source
    from peftcli.data.recognition.recognise import recognise

    files = resolve_source(source, key, "validation" if key.startswith("data.validation") else "train")
    if files.kind == "dataset" or any(file.suffix in _HEAVY_FILES for file in files.files[:1]):
        return
    rows = list(islice(files.rows(), _FIRST_ROWS))
    if not rows:
        raise UserError(f"{source.path} is empty: it has no rows", suggestion="name a file with rows")
    good = [row for row in rows if isinstance(row, Record)]
    if not good:
        return  # broken rows are reported, or skipped, when all rows are read
    found = recognise(
        good,
        loaded.recipe.task,
        wanted=source.format or data.format,
        columns=source.columns if source.columns is not None else data.columns,
        template=data.template,
        source=source.path,
        of_source=files.format,
    )
    loss = found.format.loss
    if loss is not None and loaded.recipe.training.loss_type != loss:
        text = f"these rows need the loss {loss}: {found.evidence}"
        raise UserError(Problem(text, file=source.path, suggestion=f"write training.loss_type: {loss}"))


def _warm_start(loaded: LoadedRecipe, start: str) -> Iterator[Problem]:
    try:
        path = resolve_location(start)
    except UserError as error:
        yield from _placed(loaded, "method.init_from", _beside_the_recipe(loaded, start, error))
        return
    if path is not None and not any((path / name).exists() for name in ("adapter", "adapter_config.json", "model")):
        yield loaded.problem("method.init_from", f"{start} is neither a run nor an adapter directory")


def _placed(loaded: LoadedRecipe, key: str, error: UserError) -> Iterator[Problem]:
    """Yield the problems of an error with the recipe's line, that of their own key if they have one."""
    for problem in error.problems:
        if problem.line is not None:
            yield problem  # it is in a data file
        else:
            about = f"{problem.file}: " if problem.file and problem.file not in problem.message else ""
            yield loaded.problem(problem.key or key, f"{about}{problem.message}", problem.suggestion)


def _beside_the_recipe(loaded: LoadedRecipe, path: str, error: UserError) -> UserError:
    """Return the error of a path that is missing; where it lies beside the recipe, that is the suggestion."""
    beside = Path(loaded.path).parent / path
    if len(error.problems) != 1 or Path(path).is_absolute() or expanded(path).exists() or not beside.exists():
        return error
    remedy = f"paths are relative to the working directory: write {beside}, or start in {beside.parent}"
    return UserError(replace(error.problems[0], suggestion=remedy))
