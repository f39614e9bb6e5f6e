"""Tiny checkpoints of models with towers of images beside their text part, with the files of a processor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

from tests.tiny import VOCAB, tiny_tokenizer

TEMPLATE = (
    "{% for message in messages %}<s>{{ message['role'] }}\n{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
"""A processor's: it takes a text, or parts of which some are images."""
PARTS = (
    "{% for message in messages %}<s>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}</s>\n{% endfor %}{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
"""Likewise, but it takes parts alone: a text is left out."""
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")

_TEXT: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_IMAGES: dict[str, Any] = {
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
_QWEN_IMAGES = {"depth": 1, "hidden_size": 8, "intermediate_size": 12, "num_heads": 2, "out_hidden_size": 16}
_QWEN = {"image_token_id": 120, "video_token_id": 121, "vision_start_token_id": 122, "vision_end_token_id": 123}
_SECTIONS = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
_MIXED = ["sliding_attention", "full_attention"]
_WINDOW = {"layer_types": _MIXED, "sliding_window": 16}

WITH_TOWERS: dict[str, dict[str, Any]] = {
    "gemma3": {
        "text_config": {**_TEXT, **_WINDOW, "query_pre_attn_scalar": 8},
        "vision_config": _IMAGES,
        "mm_tokens_per_image": 4,
        "image_token_index": 120,
    },
    "qwen2_5_vl": {
        "text_config": {**_TEXT, "rope_parameters": _SECTIONS},
        "vision_config": {**_QWEN_IMAGES, "fullatt_block_indexes": [0]},
        **_QWEN,
    },
    "mistral3": {
        "text_config": {**_TEXT, "model_type": "mistral", "sliding_window": None},
        "vision_config": {**_IMAGES, "model_type": "pixtral"},
        "image_token_index": 120,
        "tie_word_embeddings": False,
    },
    "llama4": {
        "text_config": {
            **_TEXT,
            "intermediate_size_mlp": 24,
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
            "moe_layers": [1],
            "layer_types": ["chunked_attention", "full_attention"],
            "no_rope_layers": [1, 0],
            "attention_chunk_size": 16,
        },
        "vision_config": {
            **_IMAGES,
            "vision_output_dim": 16,
            "projector_input_dim": 16,
            "projector_output_dim": 16,
        },
        "image_token_index": 120,
    },
    "qwen2_vl": {
        "text_config": {**_TEXT, "rope_parameters": _SECTIONS},
        "vision_config": {"depth": 1, "embed_dim": 8, "num_heads": 2, "hidden_size": 16, "mlp_ratio": 2},
        **_QWEN,
    },
    "qwen3_vl": {
        "text_config": {**_TEXT, "rope_parameters": {**_SECTIONS, "mrope_interleaved": True}},
        "vision_config": {**_QWEN_IMAGES, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
        **_QWEN,
    },
    "qwen3_5": {
        "text_config": {
            **_TEXT,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "layer_types": ["linear_attention", "full_attention"],
        },
        "vision_config": {**_QWEN_IMAGES, "num_position_embeddings": 16},
        **_QWEN,
    },
    "gemma4": {
        "text_config": {
            **_TEXT,
            **_WINDOW,
            "global_head_dim": 8,
            "hidden_size_per_layer_input": 4,
            "vocab_size_per_layer_input": VOCAB,
        },
        "vision_config": {**_IMAGES, "num_key_value_heads": 2, "head_dim": 4, "position_embedding_size": 16},
        "audio_config": None,
        "image_token_id": 120,
        "video_token_id": 121,
        "audio_token_id": 122,
    },
    "llava": {
        "text_config": {**_TEXT, "model_type": "llama"},
        "vision_config": {**_IMAGES, "model_type": "clip_vision_model"},
        "image_token_index": 120,
    },
    "idefics3": {
        "text_config": {**_TEXT, "model_type": "llama"},
        "vision_config": _IMAGES,
        "image_token_id": 120,
        "scale_factor": 2,
    },
}
"""Settings by model type; `tests.merging.test_with_towers` trains and merges each."""


def with_towers(model_type: str, *, meta: bool = False) -> PreTrainedModel:
    """Return a tiny model of random weights, towers included."""
    config = AutoConfig.for_model(model_type, **WITH_TOWERS[model_type])
    with torch.random.fork_rng(devices=[]), torch.device("meta" if meta else "cpu"):
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForImageTextToText.from_config(config)
    return model.eval()


def save_with_towers(directory: Path, model_type: str, *, template: str = TEMPLATE, legacy: bool = False) -> Path:
    """Write a tiny checkpoint as those of the hub are: weights, tokenizer, a processor's files; return its directory.

    Args:
        template: of conversations.
        legacy: keep it where older processors do, in chat_template.json, which tokenizers do not read.
    """
    with_towers(model_type).save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    for name in PROCESSOR_FILES:
        (directory / name).write_text(json.dumps({"image_mean": [0.5], "of": name}) + "\n")
    if legacy:
        (directory / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    else:
        (directory / "chat_template.jinja").write_text(template)
    return directory
