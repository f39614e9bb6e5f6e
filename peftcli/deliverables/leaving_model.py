"""The description of a model that leaves: what its files are made from, whoever writes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftcli.deliverables.carried_files import base_files, read_object
from peftcli.deliverables.learnt_texts import LearntTexts
from peftcli.models.load.model_files import find_source
from peftcli.recipe.schema import ModelSpec, TaskName
from peftcli.tasks.task_info import TaskInfo
from peftcli.tasks.task_table import task_info

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class LeavingModel:
    """What the files beside the weights are made from.

    Args:
        spec: the model block of the base.
        task: as in the recipe.
        tokenizer: as it trained: with the recipe's new tokens, and with padding as training needs it.
        base: directory of the base's files; None for a GGUF file, or where they cannot be had.
        texts: what training learnt of texts.
    """

    spec: ModelSpec
    task: TaskName
    tokenizer: PreTrainedTokenizerBase
    base: Path | None
    texts: LearntTexts = field(default_factory=LearntTexts)

    @property
    def info(self) -> TaskInfo:
        """The task's record."""
        return task_info(self.task)

    @property
    def grown(self) -> bool:
        """Whether the recipe added tokens, so that the base's tokenizer files no longer serve."""
        return bool(self.spec.new_tokens)

    @property
    def pools_by_padding(self) -> bool:
        """Whether the task's models may find the end of a text by the padding token."""
        return self.info.rows == "labelled"

    def settings_of_base(self, name: str) -> Mapping[str, Any]:
        """Return a JSON object among the base's files, an empty one where there is none."""
        return {} if self.base is None else read_object(self.base / name)


def leaving_model(
    spec: ModelSpec, task: TaskName, tokenizer: PreTrainedTokenizerBase, texts: LearntTexts
) -> LeavingModel:
    """Return the description of what leaves; the base's files are looked up where they are now."""
    return LeavingModel(spec, task, tokenizer, base_files(find_source(spec.name_or_path), spec.revision), texts)
