"""Tiny models with a tokenizer that llama.cpp computes, and runs on them, made without training."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from peftcli.adapters.loading import load_adapter
from peftcli.adapters.saving import save_adapter
from peftcli.deliverables.learnt_texts import LearntTexts
from peftcli.deliverables.leaving_model import leaving_model
from peftcli.models.load.tokenizers import load_tokenizer
from peftcli.recipe.yaml.dump_recipe import dump_recipe
from tests.merging.runs import make_recipe, save_random_adapter
from tests.tiny import POSITIONS, tiny_model

TEXTS = [
    "the cat sat on the mat",
    "a dog ran to the red house, 123 times",
    "Größe, naïve; 你好 and 🙂",
    "one\ntwo\n\nthree",
]
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SIZE = 320
"""Rows of the embeddings; some have no token."""
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer(division: str = "gpt2") -> PreTrainedTokenizerFast:
    """Return a byte-level BPE of 300 tokens that divides texts like GPT-2's or Qwen 2's."""
    tokenizer = Tokenizer(models.BPE())
    if division == "qwen":
        parts = [pre_tokenizers.Split(Regex(QWEN), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)
        tokenizer.normalizer = normalizers.NFC()
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<|pad|>", "<|begin|>", "<|end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_special_tokens([AddedToken("<|im_start|>", special=True), AddedToken("<|im_end|>", special=True)])
    tokenizer.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|begin|>", eos_token="<|end|>", pad_token="<|pad|>"
    )
    made.chat_template = TEMPLATE
    return made


def piece_tokenizer() -> PreTrainedTokenizerFast:
    """Return a BPE of pieces with all bytes, as SentencePiece makes it and tokenizer.json of a Llama 2 holds it."""
    grown = Tokenizer(models.BPE())
    grown.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(vocab_size=60, show_progress=False)
    grown.train_from_iterator(TEXTS, trainer)
    found = json.loads(grown.to_str())["model"]
    tokens = ["<unk>", "<|begin|>", "<|end|>", *(f"<0x{number:02X}>" for number in range(256))]
    tokens += [token for token in found["vocab"] if token not in tokens]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: number for number, token in enumerate(tokens)},
            merges=[tuple(merge) for merge in found["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<|begin|>", "<|end|>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<|begin|>", eos_token="<|end|>"
    )


@dataclass(frozen=True)
class Case:
    """A tiny model and an adapter on it.

    Args:
        family: of the model.
        method: of the adapter, as in a recipe.
        tokenizer: makes the model's.
        changes: settings of the tiny config.
    """

    family: str
    method: Mapping[str, Any]
    tokenizer: Callable[[], PreTrainedTokenizerFast] = byte_tokenizer
    changes: Mapping[str, Any] = field(default_factory=dict)


def _qwen_tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer("qwen")


LORA = {"name": "lora", "r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
_LONG = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
CASES: dict[str, Case] = {
    "llama": Case("llama", LORA),
    "llama-long": Case("llama", LORA, changes={"tie_word_embeddings": True, "rope_parameters": _LONG}),
    "mistral": Case("mistral", LORA, piece_tokenizer, {"sliding_window": None}),
    "qwen2": Case("qwen2", LORA | {"use_rslora": True, "target_modules": ["q_proj", "v_proj"]}, _qwen_tokenizer),
    "qwen3": Case("qwen3", LORA | {"rank_pattern": {"q_proj": 8}}, _qwen_tokenizer),
    "gemma2": Case("gemma2", LORA, piece_tokenizer),
    "gemma3_text": Case("gemma3_text", LORA, piece_tokenizer, {"num_hidden_layers": 6, "sliding_window_pattern": 6}),
    "granite": Case("granite", LORA, changes={"attention_multiplier": 0.25, "embedding_multiplier": 3.0}),
    "olmo2": Case("olmo2", LORA),
    "starcoder2": Case("starcoder2", LORA, changes={"sliding_window": None}),
    "phi": Case("phi", LORA, changes={"intermediate_size": 128, "num_key_value_heads": 4}),
    "phi3": Case(
        "phi3",
        LORA | {"target_modules": ["qkv_proj", "o_proj", "down_proj"]},
        piece_tokenizer,
        {"original_max_position_embeddings": POSITIONS},
    ),
    "phi3-long": Case(
        "phi3",
        LORA,
        piece_tokenizer,
        {
            "original_max_position_embeddings": 32,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "long_factor": [1.0, 1.5, 2.0, 3.0],
                "short_factor": [1.0, 1.0, 1.25, 1.5],
                "original_max_position_embeddings": 32,
                "partial_rotary_factor": 1.0,
            },
        },
    ),
}
"""What is compared with llama.cpp's converters, and loaded in llama.cpp."""


def save_served(directory: Path, family: str, tokenizer: PreTrainedTokenizerFast, **changes: Any) -> Path:
    """Write a tiny causal model with a tokenizer, and return the directory.

    All values are multiples of 1/1024 that a sum keeps exactly, so that their hashes are the same everywhere.
    """
    known = {"vocab_size": SIZE, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    model = tiny_model(family, "causal_lm", **{**known, **changes})
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) / 8)
            else:
                parameter.mul_(6)
            parameter.copy_((parameter * 1024).round() / 1024)
        for table in (model.get_input_embeddings(), model.get_output_embeddings()):  # type: ignore[operator]
            table.weight[len(tokenizer) :] = 0
    model.save_pretrained(directory)  # type: ignore[operator]
    tokenizer.save_pretrained(directory)
    return directory


def served_run(folder: Path, case: Case, **model: Any) -> Path:
    """Return a run directory with a random adapter, whose values are multiples of 1/16.

    Args:
        model: more of the recipe's model block.
    """
    folder.mkdir(parents=True, exist_ok=True)
    base = save_served(folder / "model", case.family, case.tokenizer(), **case.changes)
    recipe = make_recipe(folder, "causal_lm", case.method, base, **model)
    run = folder / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    save_random_adapter(run / "adapter", recipe, None, size=0.3, seed=7)
    saved = load_adapter(run / "adapter")
    generator = torch.Generator().manual_seed(7)
    drawn = {name: torch.randn(saved.state[name].shape, generator=generator) for name in sorted(saved.state)}
    state = {name: (tensor * 5).round() / 16 for name, tensor in drawn.items()}
    shutil.rmtree(run / "adapter")
    texts = LearntTexts.from_dict(saved.meta.texts or {})
    leaving = leaving_model(recipe.model, recipe.task, load_tokenizer(recipe.model), texts)
    save_adapter(run / "adapter", attachment_state=state, params=saved.params, meta=saved.meta, leaving=leaving)
    return run
