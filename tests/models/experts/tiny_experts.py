"""Tiny mixtures of experts, randomly initialised: one for each way in which transformers holds experts."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

EXPERTS = 4
_COMMON: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 40,
    "num_experts": EXPERTS,
    "num_local_experts": EXPERTS,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_OWN: dict[str, dict[str, Any]] = {
    "mixtral": {},
    "qwen3_moe": {"head_dim": 16, "mlp_only_layers": [0]},
    "qwen2_moe": {},
    "gpt_oss": {"head_dim": 16, "sliding_window": 16, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    "olmoe": {},
}
STACKED = list(_OWN)
"""Families whose experts are 3-D parameters: fused; beside dense blocks; beside a shared expert; gate and up in turn,
stored (in, out) and with biases; and once more fused."""
APART = "switch_transformers"
"""A family in which each expert is a module of its own."""
OUTSIDE = "llama4_text"
"""A family whose experts are 3-D parameters that run by no function of others."""


def family_config(family: str) -> dict[str, Any]:
    """Return the settings of a family's config."""
    return {**_COMMON, **_OWN[family]}


def tiny_experts(family: str, seed: int = 0) -> nn.Module:
    """Return a small model in eval mode, float32; biases are not zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _made(family)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                nn.init.normal_(parameter, std=0.1)
    return model.eval()


def _made(family: str) -> nn.Module:
    if family == APART:
        config = AutoConfig.for_model(
            family,
            vocab_size=128,
            d_model=32,
            d_kv=8,
            d_ff=48,
            num_layers=2,
            num_decoder_layers=2,
            num_sparse_encoder_layers=1,
            num_sparse_decoder_layers=1,
            num_heads=4,
            num_experts=EXPERTS,
            decoder_start_token_id=0,
            dropout_rate=0.0,
        )
        switch: nn.Module = AutoModelForSeq2SeqLM.from_config(config)
        return switch
    own = _OWN.get(family, {"intermediate_size_mlp": 48})
    model: nn.Module = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **{**_COMMON, **own}))
    return model
