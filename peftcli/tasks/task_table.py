"""The tasks by name, in the order of the documentation. A new task gets one line here."""

from __future__ import annotations

from collections.abc import Mapping

from peftcli.errors import UserError
from peftcli.recipe.preference_losses import takes_single_answers
from peftcli.recipe.schema import Recipe
from peftcli.tasks.causal_lm import CausalLM
from peftcli.tasks.preference import Preference
from peftcli.tasks.seq2seq_lm import Seq2SeqLM
from peftcli.tasks.sequence_classification import SequenceClassification
from peftcli.tasks.task import Task
from peftcli.tasks.task_info import TaskInfo
from peftcli.tasks.token_classification import TokenClassification

_CLASSES: tuple[type[Task], ...] = (
    CausalLM,
    Seq2SeqLM,
    SequenceClassification,
    TokenClassification,
    Preference,
)

TASKS: Mapping[str, type[Task]] = {task.info.name: task for task in _CLASSES}

GOES_ON = CausalLM.info.name
"""The task of a model that goes on with a text, where nothing says more."""


def task_info(name: str) -> TaskInfo:
    """Return the record of a task.

    Raises:
        UserError: there is no such task.
    """
    if name not in TASKS:
        raise UserError(f"there is no task {name!r}", suggestion=f"choose one of: {', '.join(TASKS)}")
    return TASKS[name].info


def row_sequences(recipe: Recipe) -> int:
    """Return how many sequences the model reads of a row, each as long as `data.max_length` at most."""
    return 1 if takes_single_answers(recipe.training) else task_info(recipe.task).sequences
