"""The models of the shipped recipes, from the values of their public configs: on the meta device, and shrunk."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml
from transformers import AutoConfig, PretrainedConfig

from peftcli.analysis.advice.memory_bound import SPARE, Shapes
from peftcli.analysis.counting import count_method
from peftcli.models.load.load_model import count_parameters
from peftcli.models.load.meta_model import build_meta
from peftcli.models.read_anatomy import read_anatomy
from peftcli.recipe.schema import Recipe
from peftcli.tasks.task_table import row_sequences
from tests.tiny import HEADS, HIDDEN, LAYERS, POSITIONS, VOCAB, save_tiny

DEVICES = (8, 16, 24, 48, 80)
"""Sizes of devices in GB that a recipe's `Memory` names."""


@cache
def known() -> dict[str, dict[str, Any]]:
    """Return the entries of model_configs.yaml by the model's name."""
    data: dict[str, dict[str, Any]] = yaml.safe_load((Path(__file__).parent / "model_configs.yaml").read_text())
    return data


def real_config(model: str) -> PretrainedConfig:
    """Return the config of a model; its values are those of the public config.json."""
    values = dict(known()[model]["config"])
    return AutoConfig.for_model(values.pop("model_type"), **values)


_SMALL = {
    **dict.fromkeys(["hidden_size", "n_embd", "d_model"], HIDDEN),
    **dict.fromkeys(["intermediate_size", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim"], 2 * HIDDEN),
    **dict.fromkeys(["num_hidden_layers", "n_layer", "num_layers", "num_decoder_layers"], LAYERS),
    **dict.fromkeys(["encoder_layers", "decoder_layers"], LAYERS),
    **dict.fromkeys(["num_attention_heads", "n_head", "num_heads"], HEADS),
    **dict.fromkeys(["encoder_attention_heads", "decoder_attention_heads"], HEADS),
    **dict.fromkeys(["head_dim", "d_kv"], HIDDEN // HEADS),
    **dict.fromkeys(["max_position_embeddings", "n_positions"], POSITIONS),
    "vocab_size": VOCAB,
    "moe_intermediate_size": HIDDEN,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "sliding_window": POSITIONS // 2,
    "position_buckets": 8,
}


def save_shrunk(folder: Path, model: str, task: str) -> Path:
    """Write a model with the structure of a real config and small sizes, with a tokenizer, and return its directory."""
    values = dict(known()[model]["config"])
    family = values.pop("model_type")
    if heads := values.get("num_key_value_heads"):
        values["num_key_value_heads"] = max(1, HEADS * heads // values["num_attention_heads"])
    small = {key: _SMALL.get(key, value) if value is not None else None for key, value in values.items()}
    kept = {key: value for key, value in small.items() if not key.endswith("token_id")}
    return save_tiny(folder, family, "base" if "classification" in task else task, **kept)


def memory_line(recipe: Recipe) -> str:
    """Return what a recipe's `Memory` line says: the smallest usual device, and the bound from shapes.

    It is the bound of `peft recommend --memory` with the parameters that this recipe trains; weights that are computed
    in float32 take twice the bytes.
    """
    config = real_config(recipe.model.name_or_path)
    meta = build_meta(config, recipe.task, recipe.model.num_labels or 2)
    anatomy = read_anatomy(meta, recipe.model.anatomy)
    counts = count_method(config, recipe.task, recipe.method, num_labels=recipe.model.num_labels or 2)
    data, training = recipe.data, recipe.training
    assert data is not None
    rows = training.per_device_train_batch_size
    tokens = min(data.max_length, anatomy.max_positions or data.max_length) * row_sequences(recipe)
    shapes = Shapes(
        numbers=count_parameters(meta),
        linear_numbers=sum(linear.in_features * linear.out_features for linear in anatomy.linears),
        adapter_numbers=0,
        width=anatomy.hidden_size,
        blocks=sum(map(len, anatomy.layers.values())),
        row_tokens=tokens,
    )
    four_bits = recipe.method.name == "qlora" or recipe.model.load_in_4bit
    checkpointing = training.gradient_checkpointing is True
    needed = shapes.bytes_needed(rows, four_bits=four_bits, checkpointing=checkpointing)
    wide = known()[recipe.model.name_or_path]["stored"] == "float32" and recipe.model.dtype in ("auto", "float32")
    needed = needed * (2 if wide and not four_bits else 1) + 16.0 * counts.trainable
    device = next((size for size in DEVICES if needed <= SPARE * size * 1e9), None)
    assert device is not None, f"{needed / 1e9:.1f} GB: no single device holds that"
    return f"{device} GB (bound from shapes: {needed / 1e9:.1f} GB for {rows} x {tokens} tokens; not measured)"
