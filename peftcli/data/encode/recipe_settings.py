"""From a recipe's `data` block to how its examples become rows."""

from __future__ import annotations

from typing import Any

from peftcli.data.chat.named_templates import choose_template
from peftcli.data.encode.causal import added_in_front
from peftcli.data.encode.encode_settings import EncodeSettings
from peftcli.errors import Problem, UserError
from peftcli.recipe.schema import DataSpec, TaskName
from peftcli.tasks.task_table import TASKS, task_info


def recipe_settings(
    spec: DataSpec, task: TaskName, tokenizer: Any, max_length: int, *, predicting: bool = False
) -> EncodeSettings:
    """Return how a recipe's examples become rows; the kind of label is still open.

    Args:
        max_length: tokens of a row at most: the recipe's number, or what the model allows.
        predicting: rows are inputs only.

    Raises:
        UserError: the tokenizer does not do for the task, or there is no such chat template.
    """
    kind = task_info(task).reads
    if kind == "tagged" and not tokenizer.is_fast:
        raise UserError(
            Problem(
                f"{task} needs a fast tokenizer, which says where words begin; "
                f"{type(tokenizer).__name__} is Python code",
                key="model.name_or_path",
                suggestion="choose a model with a tokenizer.json",
            )
        )
    if spec.chat_template_kwargs and kind != "text":
        text = f"a chat template is for conversations of causal_lm, not {task}"
        raise UserError(Problem(text, key="data.chat_template_kwargs", suggestion="leave it out"))
    arguments = spec.chat_template_kwargs
    template = choose_template(spec.chat_template, tokenizer, arguments) if kind == "text" else None
    adds = bool(template and template.name != "tokenizer" and added_in_front(tokenizer))
    return EncodeSettings(
        task, max_length, spec.overflow, spec.train_on, template=template, add_head=adds, predicting=predicting
    )


def check_data_block(spec: DataSpec, task: TaskName) -> None:
    """Raise a `UserError` for options of a `data` block that contradict each other, or the task."""
    problems, info = [], task_info(task)
    if spec.packing and not info.packs:
        those = ", ".join(name for name, other in TASKS.items() if other.info.packs)
        problems.append(Problem(f"packing is for {those}, not {task}", key="data.packing", suggestion="set it false"))
    if spec.group_by and spec.stratify:
        text = "a split cannot be grouped and stratified at once"
        problems.append(Problem(text, key="data.stratify", suggestion="leave one of group_by and stratify out"))
    if spec.overflow == "split" and info.why_not_split:
        text = f"overflow: split would {info.why_not_split}"
        problems.append(Problem(text, key="data.overflow", suggestion="truncate, drop or error"))
    if problems:
        raise UserError(problems)
