"""The tasks by name."""

from __future__ import annotations

from peftcli.tasks.causal_lm import CausalLM
from peftcli.tasks.seq2seq_lm import Seq2SeqLM
from peftcli.tasks.sequence_classification import SequenceClassification
from peftcli.tasks.task import Batch, Evaluated, LossTerms, Task, TaskSettings
from peftcli.tasks.token_classification import TokenClassification

__all__ = ["TASKS", "Batch", "Evaluated", "LossTerms", "Task", "TaskSettings"]

TASKS: dict[str, type[Task]] = {
    task.name: task for task in (CausalLM, Seq2SeqLM, SequenceClassification, TokenClassification)
}
