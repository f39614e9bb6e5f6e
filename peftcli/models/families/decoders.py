"""The families of decoders. Paths are those of transformers 5.23."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from peftcli.models.families.family_row import AttentionRow, BranchRow, Family, FamilyRow, FusedRow, Layout, StackRow

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_QKV = ("attn.q", "attn.k", "attn.v")


def _positions(config: PretrainedConfig) -> int:
    return int(config.max_position_embeddings)


_LLAMA_ATTENTION = {
    "attn.q": "self_attn.q_proj",
    "attn.k": "self_attn.k_proj",
    "attn.v": "self_attn.v_proj",
    "attn.o": "self_attn.o_proj",
}
_LLAMA_FFN = {"ffn.gate": "mlp.gate_proj", "ffn.up": "mlp.up_proj", "ffn.down": "mlp.down_proj"}
_LLAMA_STACK = StackRow(
    stack="decoder",
    layers="layers.*|language_model.layers.*",
    linears={**_LLAMA_ATTENTION, **_LLAMA_FFN},
    branches=(
        BranchRow("attn", "self_attn.q_proj", "self_attn.o_proj", pre_norm="input_layernorm"),
        BranchRow("ffn", "mlp.gate_proj", "mlp.down_proj", pre_norm="post_attention_layernorm"),
    ),
    attentions=(AttentionRow("self_attn"),),
)
_LLAMA = FamilyRow((_LLAMA_STACK,), "embed_tokens|language_model.embed_tokens")

# Norms before and after each branch: the branch ends with the second one, and an adapter comes after it.
_GEMMA = replace(
    _LLAMA,
    stacks=(
        replace(
            _LLAMA_STACK,
            branches=(
                BranchRow("attn", "self_attn.q_proj", "post_attention_layernorm", pre_norm="input_layernorm"),
                BranchRow("ffn", "mlp.gate_proj", "post_feedforward_layernorm", pre_norm="pre_feedforward_layernorm"),
            ),
        ),
    ),
)
# OLMo 2 has no norm before a branch, only one after it.
_OLMO2 = replace(
    _LLAMA,
    stacks=(
        replace(
            _LLAMA_STACK,
            branches=(
                BranchRow("attn", "self_attn.q_proj", "post_attention_layernorm"),
                BranchRow("ffn", "mlp.gate_proj", "post_feedforward_layernorm"),
            ),
        ),
    ),
)

_ROUTER = "the router only chooses experts; it stays frozen"
_MOE = replace(
    _LLAMA,
    stacks=(
        replace(
            _LLAMA_STACK,
            branches=(
                _LLAMA_STACK.branches[0],
                # Dense layers (qwen3_moe's mlp_only_layers) have projections, sparse ones do not.
                BranchRow("ffn", "mlp.gate_proj|mlp", "mlp.down_proj|mlp", pre_norm="post_attention_layernorm"),
            ),
            left_out={"mlp.gate": _ROUTER},
            routers=("mlp.gate",),
        ),
    ),
)

_PHI3 = replace(
    _LLAMA,
    stacks=(
        replace(
            _LLAMA_STACK,
            linears={"attn.o": "self_attn.o_proj", "ffn.down": "mlp.down_proj"},
            fused={
                "self_attn.qkv_proj": FusedRow(_QKV),
                "mlp.gate_up_proj": FusedRow(("ffn.gate", "ffn.up")),
            },
            branches=(
                BranchRow("attn", "self_attn.qkv_proj", "self_attn.o_proj", pre_norm="input_layernorm"),
                BranchRow("ffn", "mlp.gate_up_proj", "mlp.down_proj", pre_norm="post_attention_layernorm"),
            ),
        ),
    ),
)

_PHI = replace(
    _LLAMA,
    stacks=(
        replace(
            _LLAMA_STACK,
            linears={**_LLAMA_ATTENTION, "attn.o": "self_attn.dense", "ffn.up": "mlp.fc1", "ffn.down": "mlp.fc2"},
            branches=(  # parallel: both branches have the same norm, and the block adds both outputs
                BranchRow("attn", "self_attn.q_proj", "self_attn.dense", pre_norm="input_layernorm"),
                BranchRow("ffn", "mlp.fc1", "mlp.fc2", pre_norm="input_layernorm"),
            ),
        ),
    ),
)

_STARCODER2 = replace(
    _LLAMA,
    stacks=(
        replace(
            _LLAMA_STACK,
            linears={**_LLAMA_ATTENTION, "ffn.up": "mlp.c_fc", "ffn.down": "mlp.c_proj"},
            branches=(
                _LLAMA_STACK.branches[0],
                BranchRow("ffn", "mlp.c_fc", "mlp.c_proj", pre_norm="post_attention_layernorm"),
            ),
        ),
    ),
)

_GPT2 = FamilyRow(
    stacks=(
        StackRow(
            stack="decoder",
            layers="h.*",
            linears={"attn.o": "attn.c_proj", "ffn.up": "mlp.c_fc", "ffn.down": "mlp.c_proj"},
            fused={"attn.c_attn": FusedRow(_QKV)},
            branches=(
                BranchRow("attn", "attn.c_attn", "attn.c_proj", pre_norm="ln_1"),
                BranchRow("ffn", "mlp.c_fc", "mlp.c_proj", pre_norm="ln_2"),
            ),
            attentions=(AttentionRow("attn"),),
        ),
    ),
    embeddings="wte",
    positions=_positions,
)

_GPT_NEO = FamilyRow(
    stacks=(
        StackRow(
            stack="decoder",
            layers="h.*",
            linears={
                "attn.q": "attn.attention.q_proj",
                "attn.k": "attn.attention.k_proj",
                "attn.v": "attn.attention.v_proj",
                "attn.o": "attn.attention.out_proj",
                "ffn.up": "mlp.c_fc",
                "ffn.down": "mlp.c_proj",
            },
            branches=(
                BranchRow("attn", "attn.attention.q_proj", "attn.attention.out_proj", pre_norm="ln_1"),
                BranchRow("ffn", "mlp.c_fc", "mlp.c_proj", pre_norm="ln_2"),
            ),
            attentions=(AttentionRow("attn.attention"),),
        ),
    ),
    embeddings="wte",
    positions=_positions,
    prefix_route="cache_view",
)


def _neox_stack(layers: str, attention: str, layout: Layout, *, ffn_norm: str, attn_norm: str) -> StackRow:
    """Return a stack with GPT-NeoX's names for the projections: GPT-NeoX, BLOOM, Falcon."""
    return StackRow(
        stack="decoder",
        layers=layers,
        linears={"attn.o": f"{attention}.dense", "ffn.up": "mlp.dense_h_to_4h", "ffn.down": "mlp.dense_4h_to_h"},
        fused={f"{attention}.query_key_value": FusedRow(_QKV, layout)},
        branches=(
            BranchRow("attn", f"{attention}.query_key_value", f"{attention}.dense", pre_norm=attn_norm),
            BranchRow("ffn", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h", pre_norm=ffn_norm),
        ),
        attentions=(AttentionRow(attention),),
    )


_GPT_NEOX = FamilyRow(
    stacks=(
        _neox_stack(
            "layers.*",
            "attention",
            "per_head",
            attn_norm="input_layernorm",
            ffn_norm="post_attention_layernorm",
        ),
    ),
    embeddings="embed_in",
)
_BLOOM = FamilyRow(
    stacks=(
        _neox_stack(
            "h.*",
            "self_attention",
            "per_head",
            attn_norm="input_layernorm",
            ffn_norm="post_attention_layernorm",
        ),
    ),
    embeddings="word_embeddings",
    prefix_route="cache_view",
)


def _falcon(config: PretrainedConfig) -> FamilyRow:
    """Return Falcon's row for one of its layouts: grouped (40B and later), multi-query (7B), or per head (RW)."""
    layout: Layout = "per_head"
    if config.new_decoder_architecture:
        layout = "per_group"
    elif config.multi_query:
        layout = "contiguous"
    stack = _neox_stack(
        "h.*",
        "self_attention",
        layout,
        attn_norm="ln_attn|input_layernorm",
        ffn_norm="ln_mlp|post_attention_layernorm|input_layernorm",
    )
    if config.new_decoder_architecture:  # keys and values are repeated for every head before they are cached
        stack = replace(stack, attentions=(AttentionRow("self_attention", kv_heads=int(config.num_attention_heads)),))
    return FamilyRow(
        stacks=(stack,),
        embeddings="word_embeddings",
        prefix_route="cache_view",
    )


def _opt(config: PretrainedConfig) -> FamilyRow:
    """Return OPT's row, with norms before the branches, or after the residual sums (opt-350m)."""
    side = "pre_norm" if config.do_layer_norm_before else "post_norm"
    return FamilyRow(
        stacks=(
            StackRow(
                stack="decoder",
                layers="decoder.layers.*",
                linears={
                    **_LLAMA_ATTENTION,
                    "attn.o": "self_attn.out_proj",
                    "ffn.up": "fc1",
                    "ffn.down": "fc2",
                },
                branches=(
                    BranchRow("attn", "self_attn.q_proj", "self_attn.out_proj", **{side: "self_attn_layer_norm"}),
                    BranchRow("ffn", "fc1", "fc2", **{side: "final_layer_norm"}),
                ),
                attentions=(AttentionRow("self_attn"),),
            ),
        ),
        embeddings="decoder.embed_tokens",
        positions=_positions,
    )


DECODER_FAMILIES: dict[str, Family] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "granite": _LLAMA,
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "gemma3": _GEMMA,
    "olmo2": _OLMO2,
    "starcoder2": _STARCODER2,
    "phi": _PHI,
    "phi3": _PHI3,
    "mixtral": _MOE,
    "qwen3_moe": _MOE,
    "gpt2": _GPT2,
    "gpt_neo": _GPT_NEO,
    "gpt_neox": _GPT_NEOX,
    "bloom": _BLOOM,
    "falcon": _falcon,
    "opt": _opt,
}
