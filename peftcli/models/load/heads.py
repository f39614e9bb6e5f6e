"""Task heads: their labels in the config, and float32 for what is trained whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from peftcli.errors import Problem, UserError
from peftcli.models.module_view import ModuleView
from peftcli.models.read_anatomy import head_modules
from peftcli.recipe.schema import ModelSpec, TaskName
from peftcli.tasks.task_info import LabelKind
from peftcli.tasks.task_table import task_info

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

PROBLEM_TYPES: dict[LabelKind, str] = {
    "single_label": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}
"""Our name of a kind of label to transformers' `problem_type` in a config."""


class Labels(Protocol):
    """What loading asks of the data's labels: `data.LabelSpec` has it."""

    @property
    def problem(self) -> LabelKind:
        """The kind of label."""

    @property
    def names(self) -> Sequence[str]:
        """The labels in the order of the model's outputs."""


def configure_head(config: PretrainedConfig, task: TaskName, labels: Labels | None, spec: ModelSpec) -> None:
    """Write the labels and the kind of problem into the config.

    Raises:
        UserError: `model.num_labels` contradicts the data.
    """
    info = task_info(task)
    if not info.has_labels:
        return
    problem = labels.problem if labels is not None else spec.problem_type
    if labels is not None and labels.names:
        if spec.num_labels is not None and spec.num_labels != len(labels.names):
            raise UserError(
                Problem(
                    f"the data has {len(labels.names)} labels, not {spec.num_labels}: {', '.join(labels.names[:10])}",
                    key="model.num_labels",
                    suggestion="leave it out: the labels are counted in the data",
                )
            )
        config.id2label = dict(enumerate(labels.names))
        config.label2id = {name: number for number, name in config.id2label.items()}
    elif problem == "regression":
        config.num_labels = spec.num_labels or 1
        config.id2label = {i: "score" if config.num_labels == 1 else f"score_{i}" for i in range(config.num_labels)}
        config.label2id = {name: number for number, name in config.id2label.items()}
    elif spec.num_labels is not None and spec.num_labels != config.num_labels:
        config.num_labels = spec.num_labels
    if info.rows == "labelled":
        config.problem_type = PROBLEM_TYPES.get(problem, config.problem_type) if problem else config.problem_type


def compute_head_in_float32(model: PreTrainedModel) -> None:
    """Hold the task head in float32 and feed it float32, whatever the frozen weights are.

    The head is trained whole: in bfloat16 its small updates would be rounded away.
    """
    view = ModuleView(model)
    for path in head_modules(view):
        head = view.modules[path]
        if any(parameter.dtype in (torch.bfloat16, torch.float16) for parameter in head.parameters()):
            head.to(torch.float32)
            head.register_forward_pre_hook(_inputs_to_float32, with_kwargs=True)


def _inputs_to_float32(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    def cast(value: Any) -> Any:
        return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    return tuple(cast(value) for value in args), {key: cast(value) for key, value in kwargs.items()}
