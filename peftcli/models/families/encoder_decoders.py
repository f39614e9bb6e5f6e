"""The families of encoder-decoders: T5, BART and similar models, Whisper. Paths are those of transformers 5.23."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from peftcli.models.families.family_row import AttentionRow, BranchRow, Family, FamilyRow, StackRow

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def _positions(config: PretrainedConfig) -> int:
    return int(config.max_position_embeddings)


def _t5_stack(stack: Literal["encoder", "decoder"]) -> StackRow:
    ffn = "layer.2" if stack == "decoder" else "layer.1"
    linears = {f"attn.{role}": f"layer.0.SelfAttention.{role}" for role in "qkvo"}
    branches = [BranchRow("attn", "layer.0.SelfAttention.q", "layer.0.SelfAttention.o", pre_norm="layer.0.layer_norm")]
    attentions = [AttentionRow("layer.0.SelfAttention")]
    if stack == "decoder":
        cross = "layer.1.EncDecAttention"
        linears |= {f"cross_attn.{role}": f"{cross}.{role}" for role in "qkvo"}
        branches.append(BranchRow("cross_attn", f"{cross}.q", f"{cross}.o", pre_norm="layer.1.layer_norm"))
        attentions.append(AttentionRow(cross, "cross"))
    dense = f"{ffn}.DenseReluDense"
    linears |= {
        "ffn.gate": f"{dense}.wi_0",  # gated: activation(wi_0 x) * wi_1 x
        "ffn.up": f"{dense}.wi_1|{dense}.wi",
        "ffn.down": f"{dense}.wo",
    }
    branches.append(BranchRow("ffn", f"{dense}.wi_0|{dense}.wi", f"{dense}.wo", pre_norm=f"{ffn}.layer_norm"))
    return StackRow(
        stack=stack,
        layers=f"{stack}.block.*",
        linears=linears,
        branches=tuple(branches),
        attentions=tuple(attentions),
        heads="num_heads",
    )


# A forward pass calls the encoder's embedding, not `shared`, which has the same weight.
_T5 = FamilyRow((_t5_stack("encoder"), _t5_stack("decoder")), embeddings="encoder.embed_tokens|shared")


def _bart_stack(stack: Literal["encoder", "decoder"], side: Literal["pre_norm", "post_norm"]) -> StackRow:
    names = (("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj"), ("o", "out_proj"))
    linears = {f"attn.{role}": f"self_attn.{name}" for role, name in names}
    branches = [
        BranchRow("attn", "self_attn.q_proj", "self_attn.out_proj", **_norm(side, "self_attn_layer_norm")),
    ]
    attentions = [AttentionRow("self_attn")]
    if stack == "decoder":
        linears |= {f"cross_attn.{role}": f"encoder_attn.{name}" for role, name in names}
        branches.append(
            BranchRow(
                "cross_attn", "encoder_attn.q_proj", "encoder_attn.out_proj", **_norm(side, "encoder_attn_layer_norm")
            )
        )
        attentions.append(AttentionRow("encoder_attn", "cross"))
    linears |= {"ffn.up": "fc1", "ffn.down": "fc2"}
    branches.append(BranchRow("ffn", "fc1", "fc2", **_norm(side, "final_layer_norm")))
    return StackRow(
        stack=stack,
        layers=f"{stack}.layers.*",
        linears=linears,
        branches=tuple(branches),
        attentions=tuple(attentions),
        heads=f"{stack}_attention_heads",
    )


def _norm(side: str, path: str) -> dict[str, str]:
    return {side: path}


_BART = FamilyRow(
    (_bart_stack("encoder", "post_norm"), _bart_stack("decoder", "post_norm")), "encoder.embed_tokens", _positions
)
_PRE_NORM = FamilyRow(
    (_bart_stack("encoder", "pre_norm"), _bart_stack("decoder", "pre_norm")), "encoder.embed_tokens", _positions
)


def _whisper_positions(config: PretrainedConfig) -> int:
    return int(config.max_target_positions)


_WHISPER = FamilyRow(
    (_bart_stack("encoder", "pre_norm"), _bart_stack("decoder", "pre_norm")),
    embeddings="decoder.embed_tokens",
    positions=_whisper_positions,
    note="parameters can be counted, but not trained: there is no speech task",
)

SEQ2SEQ_FAMILIES: dict[str, Family] = {
    "t5": _T5,
    "mt5": _T5,
    "bart": _BART,
    "mbart": _PRE_NORM,
    "pegasus": _PRE_NORM,
    "whisper": _WHISPER,
}
