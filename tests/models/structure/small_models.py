"""Tiny models of families outside the table whose blocks differ: from configs alone, hidden size 32, float32."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import AutoConfig, PreTrainedModel

_SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
}
_LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "head_dim": 4,
    "q_lora_rank": 12,
    "kv_lora_rank": 10,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 6,
}
_DELTA: dict[str, Any] = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
_GROUPS = {"n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
_MAMBA = {"mamba_d_state": 4, "mamba_dt_rank": 4, "use_mamba_kernels": False}

MODELS: dict[str, dict[str, Any]] = {
    "deepseek_v3": {**_SIZES, **_EXPERTS, **_LATENT, **_GROUPS},
    "axk1": {**_SIZES, **_EXPERTS, **_LATENT, **_GROUPS},
    "axk2": {**_SIZES, **_EXPERTS, **_LATENT, **_GROUPS, "index_n_heads": 2, "index_head_dim": 8, "index_topk": 4},
    "qwen3_next": {**_SIZES, **_EXPERTS, **_DELTA, "shared_expert_intermediate_size": 16},
    "qwen3_5_text": {**_SIZES, **_DELTA},
    "gpt_oss": {**_SIZES, **_EXPERTS, "layer_types": ["sliding_attention", "full_attention"]},
    "qwen2_moe": {**_SIZES, **_EXPERTS, "shared_expert_intermediate_size": 16, "mlp_only_layers": [0]},
    "glm4": _SIZES,
    "glm4_moe": {**_SIZES, **_EXPERTS, **_GROUPS},
    "jamba": {
        **_SIZES,
        **_EXPERTS,
        **_MAMBA,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
    },
    "nemotron_h": {
        **_SIZES,
        **_GROUPS,
        "num_hidden_layers": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "moe_shared_expert_intermediate_size": 16,
        "layers_block_type": ["mamba", "attention", "mlp", "moe"],
        "mamba_num_heads": 4,
        "mamba_head_dim": 8,
        "ssm_state_size": 4,
        "n_groups": 1,
        "chunk_size": 8,
    },
    "olmo_hybrid": {**_SIZES, **_DELTA},
    "llama4_text": {
        **_SIZES,
        **_EXPERTS,
        "num_experts_per_tok": 1,
        "intermediate_size_mlp": 48,
        "moe_layers": [1],
        "layer_types": ["chunked_attention", "full_attention"],
        "no_rope_layers": [1, 0],
    },
    "mpt": {"vocab_size": 96, "d_model": 32, "n_heads": 4, "n_layers": 2, "expansion_ratio": 2, "max_seq_len": 32},
    "persimmon": {key: value for key, value in _SIZES.items() if key != "num_key_value_heads"},
    "gpt_bigcode": {"vocab_size": 96, "n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 32},
    "codegen": {"vocab_size": 96, "n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 32, "rotary_dim": 4},
    "openai-gpt": {"vocab_size": 96, "n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 32},
    "mamba": {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "time_step_rank": 4},
    "rwkv": {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "context_length": 32},
}
"""Settings by model type."""


def small_model(model_type: str, *, meta: bool = True, auto: str = "AutoModelForCausalLM") -> PreTrainedModel:
    """Return a model of random weights, on the meta device or on the CPU."""
    config = AutoConfig.for_model(model_type, **MODELS[model_type])
    torch.manual_seed(0)
    with torch.device("meta" if meta else "cpu"):
        model: PreTrainedModel = getattr(transformers, auto).from_config(config)
    return model.eval()
