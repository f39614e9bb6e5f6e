"""A task model on the meta device: shapes and tied weights without values, and which of them follow the labels."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from peftcli.models.load.config_errors import build_error
from peftcli.models.model_tasks import auto_class, check_task
from peftcli.recipe.schema import TaskName
from peftcli.tasks.task_table import task_info


def build_meta(
    config: PretrainedConfig, task: TaskName, num_labels: int = 2, *, trust_remote_code: bool = False
) -> PreTrainedModel:
    """Return the task model on the meta device: shapes and tied weights, no memory for values.

    Args:
        config: left as it is.
        num_labels: outputs of a classification head.
        trust_remote_code: run the code that came with the model, as `model.trust_remote_code` allows.

    Raises:
        UserError: the model cannot do the task, or transformers cannot build it; names the file and the key.
    """
    check_task(config, task)

    def build(settings: dict[str, Any]) -> PreTrainedModel:
        own = type(config).from_dict(settings)
        own.name_or_path = config.name_or_path  # code that came with the model is found by it
        if task_info(task).has_labels:
            own.num_labels = num_labels
        with torch.device("meta"):
            model: PreTrainedModel = auto_class(own, task).from_config(own, trust_remote_code=trust_remote_code)
        return model

    try:
        return build(config.to_dict())
    except Exception as error:  # whatever a family's code raises for settings that it cannot use
        raise build_error(config, build, error) from error


def label_parameters(model: PreTrainedModel, task: TaskName, *, trust_remote_code: bool = False) -> list[str]:
    """Return the parameters of a task model that have one row for each label: weight and bias of its last layer.

    They are those whose shape changes when the model is built with one label more, so no name is read.

    Args:
        model: the live task model, before parts are attached.
    """
    if not task_info(task).has_labels:
        return []
    labels = int(model.config.num_labels)
    other = build_meta(model.config, task, labels + 1, trust_remote_code=trust_remote_code)
    shapes = {name: tuple(parameter.shape) for name, parameter in other.named_parameters()}
    return [
        name
        for name, parameter in model.named_parameters()
        if name in shapes and shapes[name] == (labels + 1, *parameter.shape[1:]) and parameter.shape[0] == labels
    ]
