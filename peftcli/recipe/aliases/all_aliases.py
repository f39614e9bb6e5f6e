"""All names that other tools use, and ours for the same thing.

Sources: the option tables of axolotl, LLaMA-Factory, ms-swift, torchtune, litgpt, unsloth, trl, HF peft and
transformers' TrainingArguments, read at the versions named in the project's survey of its peers.
"""

from __future__ import annotations

from peftcli.recipe.aliases.alias import Alias
from peftcli.recipe.aliases.distributed_aliases import DISTRIBUTED
from peftcli.recipe.aliases.method_aliases import METHOD, METHOD_ALIASES
from peftcli.recipe.aliases.model_data_aliases import DATA, MODEL, TOP
from peftcli.recipe.aliases.tool_aliases import ONLY_THERE
from peftcli.recipe.aliases.training_aliases import TRAINING

__all__ = ["ALIASES", "METHOD_ALIASES", "TASK_ALIASES", "Alias"]

ALIASES: dict[str, Alias] = {**ONLY_THERE, **MODEL, **DATA, **METHOD, **TRAINING, **DISTRIBUTED, **TOP}
"""From a name of another tool, in lower case with underscores, to ours."""

TASK_ALIASES: dict[str, str] = {
    "CAUSAL_LM": "causal_lm",
    "clm": "causal_lm",
    "sft": "causal_lm",
    "pt": "causal_lm",
    "language_modeling": "causal_lm",
    "text-generation": "causal_lm",
    "instruction_tuning": "causal_lm",
    "dpo": "preference",
    "orpo": "preference",
    "simpo": "preference",
    "cpo": "preference",
    "kto": "preference",
    "preference_tuning": "preference",
    "SEQ_2_SEQ_LM": "seq2seq_lm",
    "seq2seq": "seq2seq_lm",
    "summarization": "seq2seq_lm",
    "translation": "seq2seq_lm",
    "SEQ_CLS": "sequence_classification",
    "seq_cls": "sequence_classification",
    "classification": "sequence_classification",
    "text-classification": "sequence_classification",
    "text_classification": "sequence_classification",
    "regression": "sequence_classification",
    "TOKEN_CLS": "token_classification",
    "token_cls": "token_classification",
    "ner": "token_classification",
    "tagging": "token_classification",
}
"""From a task's name in other tools to ours."""
