"""What the values of axolotl's and LLaMA-Factory's keys are here, and what these tools do where a key is missing.

`peft convert` and the tables of docs/coming-from.md are made from this file and the names beside it. Read in axolotl
067b021 (src/axolotl/utils/schemas, core/builders/base.py) and LLaMA-Factory ff6d4d1 (src/llamafactory/hparams,
data/parser.py, data/template.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftcli.recipe.aliases.alias import AXOLOTL, LLAMA_FACTORY

_TEMPLATES: Mapping[Any, Any] = {
    "tokenizer_default": None,
    "llama3": "llama3",
    "llama2": "llama2",
    "chatml": "chatml",
    "gemma": "gemma",
    "mistral": "mistral",
    "mistral_v1": "mistral",
    "phi_3": "phi3",
    "phi": "phi3",
    "qwen_25": "qwen2.5",
    "qwen": "qwen2.5",
    "qwen3": "qwen3",
    "zephyr": "zephyr",
}
_COMPLETIONS: Mapping[Any, Any] = {True: "all", False: "completions"}

VALUES: Mapping[str, Mapping[Any, Any]] = {
    "chat_template": _TEMPLATES,
    "template": _TEMPLATES,
    "train_on_inputs": _COMPLETIONS,
    "train_on_prompt": _COMPLETIONS,
    "mask_history": {True: "last_turn", False: None},
    "excess_length_strategy": {"drop": "drop", "truncate": "truncate", "raise": "error"},
    "flash_attention": {True: "flash_attention_2", False: None},
    "sdp_attention": {True: "sdpa", False: None},
    "eager_attention": {True: "eager", False: None},
    "xformers_attention": {True: "sdpa", False: None},
    "flash_attn": {"fa2": "flash_attention_2", "sdpa": "sdpa", "disabled": "eager", "auto": None},
    "attn_implementation": {"flash_attention_2": "flash_attention_2", "sdpa": "sdpa", "eager": "eager",
                            "flex_attention": "flex_attention", "auto": None},
    "group_by_length": {True: "group_by_length", False: "random"},
    "neat_packing": {True: True, False: None},
    "pure_bf16": {True: "bfloat16", False: None},
    "gradient_checkpointing": {True: True, False: False, "unsloth": True, "offload": True, "offload_disk": True},
    "disable_gradient_checkpointing": {True: False, False: None},
    "pissa_init": {True: "pissa", False: None},
    "do_eval": {True: None, False: "no"},
    "precompute_ref_log_probs": {True: None, False: None},
    "optimizer": {"adamw_hf": "adamw_torch", "adamw_torch_8bit": "adamw_8bit"},
    "optim": {"adamw_hf": "adamw_torch", "adamw_torch_8bit": "adamw_8bit"},
    "fsdp_sharding_strategy": {"FULL_SHARD": True, "SHARD_GRAD_OP": False},
    "sharding_strategy": {"FULL_SHARD": True, "SHARD_GRAD_OP": False},
}  # fmt: skip
"""From a key of theirs to our value for each of theirs; None leaves our default. Values not listed stay as they are,
where our key takes them."""

CLOSED = frozenset(["chat_template", "template", "flash_attn", "attn_implementation"])
"""Keys of `VALUES` whose other values have no counterpart here."""

DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    AXOLOTL: {
        "data.val_set_size": 0,
        "data.max_length": 512,
        "data.overflow": "drop",
        "training.num_train_epochs": 1,
        "training.per_device_train_batch_size": 1,
        "training.lr_scheduler_type": "cosine",
        "training.warmup_ratio": 0.03,
        "training.train_sampling_strategy": "random",
    },
    LLAMA_FACTORY: {
        "data.val_set_size": 0,
        "data.max_length": 2048,
        "method.r": 8,
        "method.target_modules": "all-linear",
        "training.learning_rate": 5e-5,
        "training.train_sampling_strategy": "random",
    },
}
"""What a tool does where a key is missing and a recipe of ours would do something else."""

DATASET_TYPES: Mapping[str, str] = {
    "alpaca": "alpaca",
    "alpaca_chat": "alpaca",
    "alpaca_chat.load_qa": "question_answer",
    "gpteacher": "alpaca",
    "sharegpt": "sharegpt",
    "chat_template": "messages",
    "completion": "text",
    "pretrain": "text",
}
"""From a data set's `type` in axolotl to a row format of ours; what follows a colon there words the prompt."""

INFO_COLUMNS: Mapping[str, str] = {
    "prompt": "instruction",
    "query": "input",
    "response": "output",
    "history": "history",
    "system": "system",
    "tools": "tools",
    "messages": "messages",
}
"""From a column of LLaMA-Factory's dataset_info.json to the name of ours."""

STAGE_LOSSES: Mapping[str, Mapping[Any, str]] = {
    "rl": {"dpo": "sigmoid", "ipo": "ipo", "orpo": "orpo", "simpo": "simpo", "kto": "kto"},
    "pref_loss": {"sigmoid": "sigmoid", "hinge": "hinge", "ipo": "ipo", "orpo": "orpo", "simpo": "simpo",
                  "kto_pair": "kto"},
}  # fmt: skip
"""From axolotl's `rl`, and LLaMA-Factory's `pref_loss` of `stage: dpo`, to `training.loss_type`."""

LOSS_DEFAULTS: Mapping[str, Mapping[str, Mapping[str, float]]] = {
    AXOLOTL: {"simpo": {"training.beta": 0.1, "training.sft_weight": 1.0}},
    LLAMA_FACTORY: {"simpo": {"training.beta": 0.1}},
}
"""By loss, what a tool does where a key is missing and a recipe would do something else. axolotl's simpo adds the
likelihood of the chosen answer, as TRL's CPOTrainer does with its default cpo_alpha."""

PAIR_TYPES: Mapping[str, Mapping[str, str]] = {
    "": {},
    "default": {},
    "argilla": {},
    "argilla_chat": {},
    "intel": {},
    "icr": {"prompt": "input"},
    "prompt_pairs": {},
    "ultra": {},
}
"""What follows the point in a `type` of axolotl's data sets of preferences, and the columns that it names."""

PAIR_COLUMNS: Mapping[str, Mapping[str, str]] = {
    AXOLOTL: {
        "field_messages": "prompt",
        "field_prompt": "prompt",
        "field_system": "system",
        "field_tools": "tools",
        "field_chosen": "chosen",
        "field_rejected": "rejected",
        "field_completion": "completion",
        "field_label": "label",
    },
    LLAMA_FACTORY: {
        "prompt": "prompt",
        "query": "input",
        "messages": "prompt",
        "system": "system",
        "tools": "tools",
        "chosen": "chosen",
        "rejected": "rejected",
        "response": "completion",
        "kto_tag": "label",
    },
}
"""From what names a column of preferences there to the name of ours."""
