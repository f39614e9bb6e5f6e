"""Which tasks a model can do, and the class that loads it for one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from peftcli.errors import Problem, UserError
from peftcli.models.config_facts import OF_CERTAIN_LENGTHS, kind_of
from peftcli.models.families.text_parts import LOADED_ALONE
from peftcli.recipe.schema import TaskName
from peftcli.tasks.task_info import ModelKind, TaskInfo
from peftcli.tasks.task_table import TASKS, task_info

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_SHOWN = 6


def possible_tasks(config: PretrainedConfig) -> list[TaskName]:
    """Return the tasks that a model's architecture can be trained for."""
    infos = [task.info for task in TASKS.values()]
    return [info.name for info in infos if _has_class(config, info) and not _why_not(config, info)]


def saved_tasks(config: PretrainedConfig) -> list[TaskName]:
    """Return the tasks whose head a saved model has, by the class that its config names; usually one."""
    from transformers.models.auto import modeling_auto

    saved = {str(name) for name in getattr(config, "architectures", None) or []}
    remote = _remote(config)
    found: list[TaskName] = []
    for name in possible_tasks(config):
        info = task_info(name)
        if any(task_info(other).auto_class == info.auto_class for other in found):  # the same head, trained otherwise
            continue
        tables = [getattr(modeling_auto, f"{one}_NAMES") for one in (info.mapping, info.whole_mapping) if one]
        classes = {each for table in tables for each in _names(table.get(config.model_type, ()))}
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


def auto_name(config: PretrainedConfig, task: str) -> str:
    """Return the name of transformers' class that loads a model for a task.

    A text model with towers beside it is loaded whole. Only one that was saved by the class of its text part alone, or
    whose class takes no text alone, is loaded by that.
    """
    info = task_info(task)
    alone = info.auto_class in _remote(config) or config.model_type in LOADED_ALONE
    whole = None if alone else _whole_class(config, info)
    if whole is None or info.whole_class is None:
        return info.auto_class
    text = _classes(config, info.mapping)
    saved = getattr(config, "architectures", None) or []
    return info.auto_class if whole in text or any(one.__name__ in saved for one in text) else info.whole_class


def auto_class(config: PretrainedConfig, task: str) -> Any:
    """Return transformers' class that loads a model for a task, as `auto_name` says."""
    import transformers  # seconds, and only where a model is made

    return getattr(transformers, auto_name(config, task))


def labels_each_token(model: PreTrainedModel) -> bool:
    """Tell whether a live model gives each token of its input a label."""
    from transformers.models.auto import modeling_auto

    return type(model).__name__ in modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES.values()


def whole_loader(model: PreTrainedModel) -> str | None:
    """Return the name of the class that loads a live model, if it is one for models with towers; else None."""
    from transformers.models.auto import modeling_auto

    for info in (task.info for task in TASKS.values()):
        if info.whole_mapping is None:
            continue
        whole, text = (getattr(modeling_auto, f"{name}_NAMES") for name in (info.whole_mapping, info.mapping))
        kinds = [_names(table.get(model.config.model_type, ())) for table in (whole, text)]
        if type(model).__name__ in kinds[0] - kinds[1]:
            return info.whole_class
    return None


def is_text_part(model: PreTrainedModel, config: PretrainedConfig, task: str) -> bool:
    """Tell whether a model is the text part alone of what its checkpoint holds.

    Args:
        config: of the checkpoint.
    """
    return type(model.config) is not type(config) and _whole_class(config, task_info(task)) is not None


def _has_class(config: PretrainedConfig, info: TaskInfo) -> bool:
    from transformers.models.auto import modeling_auto

    if type(config) in getattr(modeling_auto, info.mapping) or info.auto_class in _remote(config):
        return True
    return _whole_class(config, info) is not None


def _whole_class(config: PretrainedConfig, info: TaskInfo) -> type[PreTrainedModel] | None:
    """Return the class of a model with towers beside its text part, if text alone enters it and it writes text."""
    found = _classes(config, info.whole_mapping) if info.whole_mapping else ()
    return next((one for one in found if one.main_input_name == "input_ids" and one.can_generate()), None)


def _classes(config: PretrainedConfig, mapping: str) -> tuple[type[PreTrainedModel], ...]:
    """Return the classes that one of transformers' tables has for a config; often one."""
    from transformers.models.auto import modeling_auto

    table = getattr(modeling_auto, mapping)
    found = table.get(type(config), ())
    return tuple(found) if isinstance(found, list | tuple) else (found,)


def _remote(config: PretrainedConfig) -> Mapping[str, Any]:
    """Return the classes in the model's own repository."""
    return getattr(config, "auto_map", None) or {}


def _names(known: str | Iterable[str]) -> set[str]:
    return {known} if isinstance(known, str) else set(known)


def _why_not(config: PretrainedConfig, info: TaskInfo) -> str | None:
    """Return why no model of this kind can do a task; None if one can."""
    if config.model_type in OF_CERTAIN_LENGTHS:
        return OF_CERTAIN_LENGTHS[config.model_type]
    refusals = [info.refused.get(kind) for kind in _kinds(config)]
    return next((each.reason for each in reversed(refusals) if each), None) if all(refusals) else None


def _kinds(config: PretrainedConfig) -> tuple[ModelKind, ...]:
    """Return the kinds that a model may be of: of one stack the config may not tell whether it sees later tokens."""
    if config.is_encoder_decoder:
        return ("encoder_decoder",)
    known = kind_of(config.to_dict())
    return (known,) if known else ("encoder", "decoder")
