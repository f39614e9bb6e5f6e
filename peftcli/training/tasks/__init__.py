"""The tasks by name."""

from __future__ import annotations

from peftcli.training.tasks.base import Batch, Evaluated, LossTerms, Task, TaskSettings
from peftcli.training.tasks.causal_lm import CausalLM
from peftcli.training.tasks.seq2seq_lm import Seq2SeqLM
from peftcli.training.tasks.sequence_classification import SequenceClassification
from peftcli.training.tasks.token_classification import TokenClassification

__all__ = ["TASKS", "Batch", "Evaluated", "LossTerms", "Task", "TaskSettings"]

TASKS: dict[str, type[Task]] = {
    task.name: task for task in (CausalLM, Seq2SeqLM, SequenceClassification, TokenClassification)
}
