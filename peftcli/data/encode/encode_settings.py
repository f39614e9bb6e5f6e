"""What decides how an example becomes tokens; part of the cache key."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from peftcli.data.chat.chat_template import ChatTemplate
from peftcli.data.chat.rendered_text import TrainOn
from peftcli.data.encode.overflow import Overflow
from peftcli.data.store.label_form import LabelForm
from peftcli.data.store.labels import Kind
from peftcli.recipe.schema import TaskName
from peftcli.tasks.task_info import RowKind
from peftcli.tasks.task_table import task_info


@dataclass(frozen=True)
class EncodeSettings:
    """How examples of one set become rows.

    Args:
        task: the recipe's task.
        max_length: tokens of a row at most.
        max_target: tokens of a target at most, where that are fewer.
        overflow: what happens to longer rows.
        train_on: which answers of a conversation are learnt.
        kind: kind of the labels, None without labels.
        form: how the cells of labels are read, None while that is still to be judged.
        names: labels that are known already, those of a run, where a row can have several.
        template: the chat template, None for plain text.
        add_head: put the tokenizer's own first tokens before a rendered template that lacks them.
        predicting: rows are inputs only.
    """

    task: TaskName
    max_length: int
    overflow: Overflow = "truncate"
    train_on: TrainOn = "completions"
    kind: Kind | None = None
    form: LabelForm | None = None
    names: tuple[str, ...] = ()
    template: ChatTemplate | None = None
    add_head: bool = False
    predicting: bool = False
    max_target: int | None = None

    @property
    def rows(self) -> RowKind:
        """What the task makes of a row."""
        return task_info(self.task).rows

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as plain data, without a bound on targets that is not there."""
        return {key: value for key, value in asdict(self).items() if key != "max_target" or value is not None}
