"""What is well formed and yet wrong: options that contradict each other, the task or the method.

Each check looks at values only, never at which keys were written, so that a resolved recipe with every default in it
passes as the original did. A check names the keys it is about; it is held back where one of them is already wrong.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence

from peftcli.recipe.checks.callback_checks import check_callbacks
from peftcli.recipe.checks.data_checks import check_data
from peftcli.recipe.checks.distributed_checks import check_distributed
from peftcli.recipe.checks.method_checks import check_methods
from peftcli.recipe.checks.metric_checks import check_metrics
from peftcli.recipe.checks.preference_checks import check_preference
from peftcli.recipe.optimizer_table import OPTIMIZERS
from peftcli.recipe.pydantic_messages import Finding, choice_hint
from peftcli.recipe.schema import Recipe
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
    return [finding for finding in found if not any(_touches(finding, key) for key in wrong)]


def _touches(finding: Finding, key: Key) -> bool:
    about = [finding.key, *(tuple(word.split(".")) for word in re.findall(r"\b[a-z]+\.[a-z_0-9]+", finding.message))]
    return any(key == one[: len(key)] for one in about)


def _model(recipe: Recipe, names: Names) -> Iterator[Finding]:
    model, task = recipe.model, recipe.task
    if model.load_in_4bit and model.load_in_8bit:
        yield Finding(("model", "load_in_8bit"), "model.load_in_4bit and model.load_in_8bit are both true")
    serves = {
        "num_labels": [name for name, info in names.tasks.items() if info.label_kind],
        "problem_type": [name for name, info in names.tasks.items() if info.label_kind and len(info.predictions) > 1],
    }
    for key, tasks in serves.items():
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
    if model.attn_implementation == "flash_attention_2" and model.dtype == "float32":
        yield Finding(
            ("model", "attn_implementation"),
            "flash_attention_2 computes in float16 and bfloat16 only, and model.dtype is float32",
            "write dtype: bfloat16, or attn_implementation: sdpa",
        )
    if not all(model.new_tokens) or len(set(model.new_tokens)) < len(model.new_tokens):
        yield Finding(("model", "new_special_tokens"), "model.new_special_tokens has an empty or repeated token")


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
    if recipe.output_dir is not None and os.path.expanduser(recipe.output_dir).startswith("~"):
        name = recipe.output_dir.split("/")[0]
        yield Finding(("output_dir",), f"output_dir = {recipe.output_dir!r}; there is no home directory {name}")


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


_CHECKS: tuple[Check, ...] = (
    _model,
    check_data,
    _steps,
    _numbers,
    _head,
    _evaluation,
    check_metrics,
    check_callbacks,
    check_preference,
    check_methods,
    check_distributed,
)
