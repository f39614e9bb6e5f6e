"""Tiny models, rows and recipes for the tasks that `configs/` does not cover; transformers and tokenizers alone.

Rows have many lengths, so that padding, joining rows and splitting a batch are part of what is compared, and the models
have dropout.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
WORDS = [f"{consonant}{vowel}{end}" for consonant in "bdfgklmnpr" for vowel in "aeiou" for end in ("n", "s")]
TAGS = ["O", "B-X", "I-X"]

_SIZES: dict[str, Any] = {
    "vocab_size": len(SPECIAL) + len(WORDS),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,
}
_MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "causal_lm": (
        "AutoModelForCausalLM",
        "llama",
        {**_SIZES, "num_key_value_heads": 2, "attention_dropout": 0.1},
    ),
    "seq2seq_lm": (
        "AutoModelForSeq2SeqLM",
        "t5",
        {
            "vocab_size": _SIZES["vocab_size"],
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 48,
            "num_layers": 2,
            "num_heads": 4,
            "dropout_rate": 0.1,
            "pad_token_id": 0,
            "eos_token_id": 2,
            "decoder_start_token_id": 0,
        },
    ),
    "token_classification": (
        "AutoModelForTokenClassification",
        "bert",
        {
            **_SIZES,
            "hidden_dropout_prob": 0.1,
            "attention_probs_dropout_prob": 0.1,
            "id2label": dict(enumerate(TAGS)),
            "label2id": {tag: index for index, tag in enumerate(TAGS)},
        },
    ),
}
"""Task: (the class of transformers, model type, settings of its config)."""

TASKS = tuple(_MODELS)


def write_recipes(directory: Path, rows: int = 96) -> dict[str, Path]:
    """Write a model, rows and a recipe for each task into a directory; return the recipes by task."""
    transformers.utils.logging.disable_progress_bar()
    recipes = {}
    for task in TASKS:
        _write_model(directory / task, task)
        data = directory / f"{task}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in _rows(task, rows)), encoding="utf-8")
        recipe = {
            "model": {"name_or_path": str(directory / task)},
            "task": task,
            "data": {"path": str(data), "max_length": 48},
            "method": {"name": "lora", "r": 4, "lora_dropout": 0.1, "target_modules": "all-linear"},
            "training": {"learning_rate": 0.01, "gradient_accumulation_steps": 2},
        }
        recipes[task] = directory / f"{task}.yaml"
        recipes[task].write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
    return recipes


def _write_model(directory: Path, task: str) -> None:
    """Write a randomly initialised checkpoint and its tokenizer: the same bits every time."""
    auto, model_type, settings = _MODELS[task]
    config = transformers.AutoConfig.for_model(model_type, **settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        getattr(transformers, auto).from_config(config).save_pretrained(directory)
    vocabulary = {word: index for index, word in enumerate(SPECIAL + WORDS)}  # not learned: every entry is chosen
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    template = {"causal_lm": "$A", "seq2seq_lm": "$A </s>", "token_classification": "<s> $A </s>"}[task]
    words.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("<s>", vocabulary["<s>"]), ("</s>", vocabulary["</s>"])]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words,
        model_max_length=_SIZES["max_position_embeddings"],
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        **({"cls_token": "<s>", "sep_token": "</s>"} if task == "token_classification" else {}),
    )
    tokenizer.save_pretrained(directory)


def _rows(task: str, number: int) -> list[dict[str, Any]]:
    """Return rows of 3 to 36 words; what is to be learned follows from the words."""
    draw = random.Random(0)
    rows: list[dict[str, Any]] = []
    for _ in range(number):
        words = [draw.choice(WORDS) for _ in range(draw.randint(3, 36))]
        if task == "token_classification":
            rows.append({"tokens": words, "tags": [TAGS[WORDS.index(word) % len(TAGS)] for word in words]})
            continue
        answer = " ".join(reversed(words[-6:]))
        names = ("prompt", "completion") if task == "causal_lm" else ("input", "target")
        rows.append(dict(zip(names, (" ".join(words), f" {answer}"), strict=True)))
    return rows
