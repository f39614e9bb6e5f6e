"""Which transformers class serves a task, and which tasks a model can do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peftcli.errors import Problem, UserError
from peftcli.models.families.encoders import ENCODER_FAMILIES
from peftcli.recipe.schema import TaskName

if TYPE_CHECKING:
    from transformers import PretrainedConfig

TASK_CLASSES: dict[TaskName, str] = {
    "causal_lm": "AutoModelForCausalLM",
    "seq2seq_lm": "AutoModelForSeq2SeqLM",
    "sequence_classification": "AutoModelForSequenceClassification",
    "token_classification": "AutoModelForTokenClassification",
}
_MAPPINGS: dict[TaskName, str] = {
    "causal_lm": "MODEL_FOR_CAUSAL_LM_MAPPING",
    "seq2seq_lm": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING",
    "sequence_classification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING",
    "token_classification": "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING",
}


def possible_tasks(config: PretrainedConfig) -> list[TaskName]:
    """Return the tasks that a model can be trained for, by its architecture."""
    return [task for task in TASK_CLASSES if _has_class(config, task) and not _why_not(config, task)]


def check_task(config: PretrainedConfig, task: TaskName) -> None:
    """Refuse a task that the model cannot do.

    Raises:
        UserError: names the tasks that it can do.
    """
    reason = _why_not(config, task)
    if reason is None and _has_class(config, task):
        return
    reason = reason or "transformers has no such class for it"
    others = ", ".join(possible_tasks(config)) or "none of the tasks here"
    raise UserError(
        Problem(
            f"a {config.model_type} model cannot do {task}: {reason}",
            key="task",
            suggestion=f"it can do: {others}",
        )
    )


def _has_class(config: PretrainedConfig, task: TaskName) -> bool:
    from transformers.models.auto import modeling_auto

    if type(config) in getattr(modeling_auto, _MAPPINGS[task]):
        return True
    remote = getattr(config, "auto_map", None) or {}  # code that comes with the model
    return TASK_CLASSES[task] in remote


def _why_not(config: PretrainedConfig, task: TaskName) -> str | None:
    if task == "causal_lm" and config.is_encoder_decoder:
        return "it is an encoder-decoder"
    if task == "causal_lm" and config.model_type in ENCODER_FAMILIES and not getattr(config, "is_decoder", False):
        # transformers has such classes, but their attention sees the tokens that are to be predicted
        return "it is an encoder, whose attention sees later tokens"
    return None
