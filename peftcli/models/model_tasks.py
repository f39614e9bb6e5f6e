"""Which tasks a model can do, and the class that loads it for one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peftcli.errors import Problem, UserError
from peftcli.models.config_facts import kind_of
from peftcli.recipe.schema import TaskName
from peftcli.tasks.task_info import ModelKind, TaskInfo
from peftcli.tasks.task_table import TASKS, task_info

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_SHOWN = 6


def possible_tasks(config: PretrainedConfig) -> list[TaskName]:
    """Return the tasks that a model's architecture can be trained for."""
    infos = [task.info for task in TASKS.values()]
    return [info.name for info in infos if _has_class(config, info) and not _why_not(config, info)]


def saved_tasks(config: PretrainedConfig) -> list[TaskName]:
    """Return the tasks whose head a saved model has, by the class that its config names; usually one."""
    from transformers.models.auto import modeling_auto

    saved = {str(name) for name in getattr(config, "architectures", None) or []}
    remote = getattr(config, "auto_map", None) or {}
    found: list[TaskName] = []
    for name in possible_tasks(config):
        info = task_info(name)
        if any(task_info(other).auto_class == info.auto_class for other in found):  # the same head, trained otherwise
            continue
        known = getattr(modeling_auto, f"{info.mapping}_NAMES").get(config.model_type, ())
        classes = {known} if isinstance(known, str) else set(known)
        if saved & (classes | {str(remote.get(info.auto_class, "")).rpartition(".")[2]}):
            found.append(name)
    return found


def check_task(config: PretrainedConfig, task: TaskName) -> None:
    """Check that a model can be trained for a task.

    Raises:
        UserError: it cannot; names the tasks that it can be trained for.
    """
    info = task_info(task)
    reason = _why_not(config, info)
    if reason is None and _has_class(config, info):
        return
    others = ", ".join(possible_tasks(config))
    remedy = f"it can do: {others or 'none of the tasks here'}"
    if reason is None:
        reason = "transformers has no such class for it"
        if _has_images(config):
            reason = f"it is a vision-language model, and transformers has no class that loads its text part for {task}"
            remedy = "name a text-only checkpoint of its family as the base" + (f"; {remedy}" if others else "")
            trainable = ", ".join(_text_inside(info)[:_SHOWN])
            remedy += f"; the text part can be trained here in models such as {trainable}" if trainable else ""
    raise UserError(Problem(f"a {config.model_type} model cannot do {task}: {reason}", key="task", suggestion=remedy))


def _has_images(config: PretrainedConfig) -> bool:
    """Tell whether transformers loads a model for text with images, or its config describes a tower beside the text."""
    from transformers.models.auto import modeling_auto

    names = modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    return config.model_type in names or any(name in config.sub_configs for name in ("vision_config", "audio_config"))


def _text_inside(info: TaskInfo) -> list[str]:
    """Return the model types with images that transformers also loads for a text task."""
    from transformers.models.auto import modeling_auto

    images = modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    return [name for name in getattr(modeling_auto, f"{info.mapping}_NAMES") if name in images]


def auto_class(task: str) -> Any:
    """Return transformers' class that loads a model for a task."""
    import transformers  # seconds, and only where a model is made

    return getattr(transformers, task_info(task).auto_class)


def _has_class(config: PretrainedConfig, info: TaskInfo) -> bool:
    from transformers.models.auto import modeling_auto

    if type(config) in getattr(modeling_auto, info.mapping):
        return True
    remote = getattr(config, "auto_map", None) or {}  # code in the model's repository
    return info.auto_class in remote


def _why_not(config: PretrainedConfig, info: TaskInfo) -> str | None:
    """Return why no model of this kind can do a task; None if one can."""
    refusals = [info.refused.get(kind) for kind in _kinds(config)]
    return next((each.reason for each in reversed(refusals) if each), None) if all(refusals) else None


def _kinds(config: PretrainedConfig) -> tuple[ModelKind, ...]:
    """Return the kinds that a model may be of: of one stack the config may not tell whether it sees later tokens."""
    if config.is_encoder_decoder:
        return ("encoder_decoder",)
    known = kind_of(config.to_dict())
    return (known,) if known else ("encoder", "decoder")
