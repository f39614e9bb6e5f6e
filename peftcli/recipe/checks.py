"""What is well formed and yet wrong: options that contradict each other, the task or the method.

Each check looks at values only, never at which keys were written, so that a resolved recipe with every default in it
passes as the original did. A check names the keys it is about; it is held back where one of them is already wrong.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterator, Sequence

from peftcli.recipe.method_facts import Registry
from peftcli.recipe.method_params import MethodParams
from peftcli.recipe.metric_checks import check_metrics
from peftcli.recipe.optimizer_table import OPTIMIZERS
from peftcli.recipe.pydantic_messages import Finding, choice_hint
from peftcli.recipe.schema import DataSource, DataSpec, Recipe
from peftcli.recipe.vocabulary import Names
from peftcli.recipe.yaml.yaml_lines import Key

Check = Callable[[Recipe, Names], Iterator[Finding]]


def check_recipe(recipe: Recipe, names: Names, wrong: Sequence[Key]) -> list[Finding]:
    """Return what contradicts itself in a recipe.

    Args:
        recipe: well formed; values that were wrong have been left out.
        names: what a recipe can name.
        wrong: keys that are wrong already; findings about them, or blocks that hold them, are held back.
    """
    found = [finding for check in _CHECKS for finding in check(recipe, names)]
    found += _method(recipe, names.methods)
    return [finding for finding in found if not any(_touches(finding, key) for key in wrong)]


def _touches(finding: Finding, key: Key) -> bool:
    about = [finding.key, *(tuple(word.split(".")) for word in re.findall(r"\b[a-z]+\.[a-z_0-9]+", finding.message))]
    return any(key == one[: len(key)] for one in about)


def _model(recipe: Recipe, names: Names) -> Iterator[Finding]:
    model, task = recipe.model, recipe.task
    if model.load_in_4bit and model.load_in_8bit:
        yield Finding(("model", "load_in_8bit"), "model.load_in_4bit and model.load_in_8bit are both true")
    for key in ("num_labels", "problem_type"):
        infos = names.tasks.values()
        served = (info for info in infos if (info.label_kind if key == "num_labels" else len(info.predictions) > 1))
        tasks = [info.name for info in served]
        if getattr(model, key) is not None and task not in tasks:
            yield Finding(
                ("model", key), f"model.{key} does nothing for the task {task}", f"it is for {' and '.join(tasks)}"
            )
    if model.problem_type == "single_label" and model.num_labels == 1:
        yield Finding(("model", "num_labels"), "model.num_labels = 1; one class leaves nothing to learn", "at least 2")
    if model.attn_implementation == "flash_attention_2" and recipe.training.device in ("cpu", "mps"):
        yield Finding(
            ("model", "attn_implementation"),
            f"flash_attention_2 needs CUDA, and training.device is {recipe.training.device}",
            "write sdpa or auto",
        )
    if not all(model.new_special_tokens) or len(set(model.new_special_tokens)) < len(model.new_special_tokens):
        yield Finding(("model", "new_special_tokens"), "model.new_special_tokens has an empty or repeated token")


def _data(recipe: Recipe, names: Names) -> Iterator[Finding]:
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
        if name not in allowed:
            reason = f"the format {name} does not serve the task {recipe.task}"
            yield Finding(key, reason, f"one of auto, {', '.join(sorted(allowed))}")
    if not task.generates:
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
    for key, source in sources(data):
        if source.format not in (None, "auto"):
            yield (*key, "format"), str(source.format)


def sources(data: DataSpec) -> Iterator[tuple[Key, DataSource]]:
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


def _steps(recipe: Recipe, _names: Names) -> Iterator[Finding]:
    training = recipe.training
    for event in ("eval", "save"):
        strategy, steps = getattr(training, f"{event}_strategy"), getattr(training, f"{event}_steps")
        if strategy == "steps" and steps is None:
            yield Finding(
                ("training", f"{event}_strategy"),
                f"training.{event}_strategy = steps needs training.{event}_steps",
                f"for instance `{event}_steps: 100`",
            )
        if strategy in ("no", "epoch") and steps is not None:
            yield Finding(
                ("training", f"{event}_steps"),
                f"training.{event}_steps does nothing with training.{event}_strategy = {strategy}",
                f"write {event}_strategy: steps, or leave {event}_steps out",
            )
    if training.warmup_steps and training.warmup_ratio:
        yield Finding(
            ("training", "warmup_ratio"), "training.warmup_steps and training.warmup_ratio are both given", "choose one"
        )
    if training.max_steps is not None and training.warmup_steps >= training.max_steps:
        reason = f"training.warmup_steps = {training.warmup_steps}; expected less than training.max_steps"
        yield Finding(("training", "warmup_steps"), f"{reason} = {training.max_steps}")
    if training.lr_scheduler_type == "constant" and (training.warmup_steps or training.warmup_ratio):
        key = "warmup_steps" if training.warmup_steps else "warmup_ratio"
        yield Finding(
            ("training", key),
            f"training.{key} does nothing with training.lr_scheduler_type = constant",
            "write lr_scheduler_type: constant_with_warmup",
        )


def _numbers(recipe: Recipe, _names: Names) -> Iterator[Finding]:
    training = recipe.training
    if training.fp16 and training.bf16 is True:
        yield Finding(("training", "fp16"), "training.fp16 and training.bf16 are both true", "choose one")
    if training.fp16 and training.device in ("cpu", "mps"):
        yield Finding(("training", "fp16"), f"training.fp16 needs CUDA, and training.device is {training.device}")
    if training.optim not in OPTIMIZERS:
        near = choice_hint(training.optim, list(OPTIMIZERS))
        yield Finding(
            ("training", "optim"),
            f"training.optim = {training.optim!r}; there is no such optimizer",
            f"{near + ' ' if near else ''}one of {', '.join(OPTIMIZERS)}",
        )
    for index, pattern in enumerate(training.lr_groups):
        try:
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            reason = f"training.lr_groups: {pattern!r} is not a regular expression: {error}"
            yield Finding(("training", "lr_groups", list(training.lr_groups)[index]), reason)
    if training.push_to_hub is not None and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", training.push_to_hub, re.ASCII):
        yield Finding(("training", "push_to_hub"), f"{training.push_to_hub!r} is no hub repository", "write user/name")
    if recipe.output_dir is not None and not recipe.output_dir.strip():
        yield Finding(("output_dir",), "output_dir is empty", "leave it out for runs/ and the recipe's name")


def _head(recipe: Recipe, names: Names) -> Iterator[Finding]:
    training, task = recipe.training, recipe.task
    if names.tasks[task].label_kind is None:
        for key, default in (("head_learning_rate", None), ("class_weights", None), ("train_head", True)):
            if getattr(training, key) != default:
                reason = f"training.{key} is for tasks with a head of their own; {task} has none"
                yield Finding(("training", key), reason, "leave it out")
    if training.eval_generate and not names.tasks[task].generates:
        yield Finding(("training", "eval_generate"), f"training.eval_generate is for tasks that write text, not {task}")
    if recipe.model.problem_type == "regression":
        for key in ("class_weights", "label_smoothing_factor"):
            if getattr(training, key):
                yield Finding(("training", key), f"training.{key} is for classes; model.problem_type is regression")
    weights, labels = training.class_weights, recipe.model.num_labels
    if isinstance(weights, list):
        if any(weight <= 0 for weight in weights) or not weights:
            yield Finding(("training", "class_weights"), "training.class_weights must be positive, one a class")
        if labels is not None and len(weights) != labels:
            reason = f"training.class_weights has {len(weights)} weights; model.num_labels is {labels}"
            yield Finding(("training", "class_weights"), reason)


def _evaluation(recipe: Recipe, _names: Names) -> Iterator[Finding]:
    training = recipe.training
    no_rows = recipe.data is not None and not recipe.data.val_set_size and recipe.data.validation is None
    never = training.eval_strategy == "no"
    without = "data.val_set_size = 0 leaves no validation rows" if no_rows else "training.eval_strategy = no"
    if not (no_rows or never):
        if training.early_stopping_threshold and training.early_stopping_patience is None:
            yield Finding(
                ("training", "early_stopping_threshold"),
                "training.early_stopping_threshold does nothing without training.early_stopping_patience",
            )
        return
    wants = {
        "early_stopping_patience": training.early_stopping_patience is not None,
        "eval_generate": training.eval_generate > 0,
        "metric_for_best_model": training.metric_for_best_model != "eval_loss",
        "eval_strategy": training.eval_strategy in ("steps", "epoch"),
    }
    for key, wanted in wants.items():
        if wanted:
            reason = f"training.{key} needs an evaluation, but {without}"
            yield Finding(("training", key), reason, "give validation rows, or leave it out")


def _quantisation(recipe: Recipe, forced: bool) -> Iterator[Finding]:
    model = recipe.model
    if model.load_in_4bit or forced:
        return
    for key, default in (("bnb_4bit_quant_type", "nf4"), ("bnb_4bit_compute_dtype", "auto")):
        if getattr(model, key) != default:
            yield Finding(
                ("model", key), f"model.{key} does nothing without model.load_in_4bit", "write load_in_4bit: true"
            )


def _method(recipe: Recipe, registry: Registry) -> Iterator[Finding]:
    model = recipe.model
    forced = False
    for key, params in methods_of(recipe.method):
        if registry.params_model(params.name) is None:
            continue  # named already
        name, info = params.name, registry.info(params.name)
        forced = forced or info.forces_4bit
        if info.tasks and recipe.task not in info.tasks:
            reason = f"the method {name} does not serve the task {recipe.task}"
            place = ("task",) if key == ("method",) else (*key, "name")
            yield Finding(place, reason, f"it serves {', '.join(sorted(info.tasks))}")
        quantised = [option for option in ("load_in_4bit", "load_in_8bit") if getattr(model, option)]
        if quantised and not info.quantised_base:
            reason = f"the method {name} cannot train on a quantised base (model.{quantised[0]})"
            yield Finding(("model", quantised[0]), reason, "write false, or choose another method: `peft methods`")
        if model.load_in_8bit and info.forces_4bit:
            yield Finding(("model", "load_in_8bit"), f"the method {name} uses a 4-bit base, not model.load_in_8bit")
    yield from _quantisation(recipe, forced)


def methods_of(params: MethodParams, key: Key = ("method",)) -> Iterator[tuple[Key, MethodParams]]:
    """Yield a method and, of a composition, the methods inside it, each with its key."""
    yield key, params
    for field in type(params).model_fields:
        value = getattr(params, field)
        inner = enumerate(value) if isinstance(value, list) else [(None, value)]
        for index, part in inner:
            if isinstance(part, MethodParams):
                yield from methods_of(part, (*key, field) if index is None else (*key, field, index))


_CHECKS: tuple[Check, ...] = (_model, _data, _steps, _numbers, _head, _evaluation, check_metrics)
