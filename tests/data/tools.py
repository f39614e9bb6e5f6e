"""What the data tests share: a tokenizer, files, and short ways to prepare and to read rows back."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from peftcli.data.prepare import prepare
from peftcli.data.prepared_data import PreparedData
from peftcli.data.rows.row_set import Row
from peftcli.recipe.schema import DataSpec

SPECIALS = [
    "<pad>",
    "<s>",
    "</s>",
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<|end|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "[INST]",
    "[/INST]",
]
_CORPUS = ["What is two plus two? The answer is four. Hello there, how are you today? I am fine, thank you."]


def chat_tokenizer(*, add_bos: bool = False, chat_template: str | None = None) -> Any:
    """Return a byte-level BPE tokenizer trained in memory: every text survives a round trip."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=350,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    if add_bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=10_000
    )
    made.add_special_tokens({"additional_special_tokens": SPECIALS[3:]})
    made.chat_template = chat_template
    return made


def write_jsonl(path: Path, rows: Iterable[Any]) -> Path:
    """Write one JSON value a line."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def numbered(path: Path, count: int, **more: Any) -> Path:
    """Write rows with a question and an answer that hold their number."""
    return write_jsonl(path, [{"prompt": f"What is {n}? ", "completion": f"It is {n}.", **more} for n in range(count)])


def numbers(rows: Any) -> list[int]:
    """Return the row numbers of rows."""
    return [row.row for row in rows]


def ready(tokenizer: Any, path: Path | str, task: str = "causal_lm", seed: int = 0, **data: Any) -> PreparedData:
    """Prepare a file without a validation split, unless the options ask for one."""
    options = {"path": str(path), "val_set_size": 0.0, "num_proc": 1, **data}
    return prepare(DataSpec(**options), task, tokenizer, seed=seed)


def learnt(row: Row, tokenizer: Any) -> str:
    """Return the text of the learnt tokens."""
    labels = np.asarray(row.labels)
    return str(tokenizer.decode(labels[labels >= 0]))


def whole(row: Row, tokenizer: Any) -> str:
    """Return the text of all tokens."""
    return str(tokenizer.decode(row.input_ids))
