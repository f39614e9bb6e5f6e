"""The families of encoders: BERT and similar models, ModernBERT, ViT. Paths are those of transformers 5.23."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peftcli.models.families.family_row import AttentionRow, BranchRow, Family, FamilyRow, FusedRow, StackRow

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def _positions(config: PretrainedConfig) -> int:
    return int(config.max_position_embeddings)


def _positions_after_padding(config: PretrainedConfig) -> int:
    """Return RoBERTa's positions, which start at pad_token_id + 1."""
    return int(config.max_position_embeddings) - int(config.pad_token_id or 0) - 1


def _deberta_positions(config: PretrainedConfig) -> int | None:
    return int(config.max_position_embeddings) if config.position_biased_input else None


def _albert_depths(config: PretrainedConfig, index: int, blocks: int) -> int:
    """Return how often ALBERT runs a block: depth d runs the blocks of group `int(d / (depths / groups))` once."""
    groups = int(config.num_hidden_groups)
    group = index // (blocks // groups)
    per_group = config.num_hidden_layers / groups
    return sum(int(depth / per_group) == group for depth in range(config.num_hidden_layers))


_BERT_LINEARS = {
    "attn.q": "attention.self.query",
    "attn.k": "attention.self.key",
    "attn.v": "attention.self.value",
    "attn.o": "attention.output.dense",
    "ffn.up": "intermediate.dense",
    "ffn.down": "output.dense",
}
_BERT_STACK = StackRow(
    stack="encoder",
    layers="encoder.layer.*",
    linears=_BERT_LINEARS,
    branches=(
        BranchRow("attn", "attention.self.query", "attention.output.dense", post_norm="attention.output.LayerNorm"),
        BranchRow("ffn", "intermediate.dense", "output.dense", post_norm="output.LayerNorm"),
    ),
    attentions=(AttentionRow("attention.self"),),
)
_BERT = FamilyRow((_BERT_STACK,), "embeddings.word_embeddings", _positions)
_ROBERTA = FamilyRow((_BERT_STACK,), "embeddings.word_embeddings", _positions_after_padding)

_DISTILBERT = FamilyRow(
    stacks=(
        StackRow(
            stack="encoder",
            layers="transformer.layer.*",
            linears={
                "attn.q": "attention.q_lin",
                "attn.k": "attention.k_lin",
                "attn.v": "attention.v_lin",
                "attn.o": "attention.out_lin",
                "ffn.up": "ffn.lin1",
                "ffn.down": "ffn.lin2",
            },
            branches=(
                BranchRow("attn", "attention.q_lin", "attention.out_lin", post_norm="sa_layer_norm"),
                # The module, not lin2: dropout is inside it, and the residual sum adds the module's output.
                BranchRow("ffn", "ffn.lin1", "ffn", post_norm="output_layer_norm"),
            ),
            attentions=(AttentionRow("attention"),),
        ),
    ),
    embeddings="embeddings.word_embeddings",
    positions=_positions,
)

_ALBERT = FamilyRow(
    stacks=(
        StackRow(
            stack="encoder",
            layers="encoder.albert_layer_groups.*.albert_layers.*",
            linears={
                "attn.q": "attention.query",
                "attn.k": "attention.key",
                "attn.v": "attention.value",
                "attn.o": "attention.dense",
                "ffn.up": "ffn",
                "ffn.down": "ffn_output",
            },
            branches=(
                BranchRow("attn", "attention.query", "attention.dense", post_norm="attention.LayerNorm"),
                BranchRow("ffn", "ffn", "ffn_output", post_norm="full_layer_layer_norm"),
            ),
            attentions=(AttentionRow("attention"),),
            depths=_albert_depths,
        ),
    ),
    embeddings="embeddings.word_embeddings",
    positions=_positions,
    note="ALBERT runs the same block at every depth, so all depths share what a method adds",
)

_RELATIVE = "projects relative positions, not tokens"
_DEBERTA = FamilyRow(
    stacks=(
        StackRow(
            stack="encoder",
            layers="encoder.layer.*",
            linears={
                **_BERT_LINEARS,
                "attn.q": "attention.self.query_proj",
                "attn.k": "attention.self.key_proj",
                "attn.v": "attention.self.value_proj",
            },
            branches=(
                # With share_att_key, query_proj also runs on the relative positions; the module runs once.
                BranchRow("attn", "attention.self", "attention.output.dense", post_norm="attention.output.LayerNorm"),
                BranchRow("ffn", "intermediate.dense", "output.dense", post_norm="output.LayerNorm"),
            ),
            attentions=(AttentionRow("attention.self"),),
            left_out={"attention.self.pos_key_proj": _RELATIVE, "attention.self.pos_query_proj": _RELATIVE},
        ),
    ),
    embeddings="embeddings.word_embeddings",
    positions=_deberta_positions,
    prefix_route="padded_rows",
)

_MODERNBERT = FamilyRow(
    stacks=(
        StackRow(
            stack="encoder",
            layers="layers.*",
            linears={"attn.o": "attn.Wo", "ffn.down": "mlp.Wo"},
            fused={
                "attn.Wqkv": FusedRow(("attn.q", "attn.k", "attn.v")),
                "mlp.Wi": FusedRow(("ffn.gate", "ffn.up")),
            },
            branches=(
                BranchRow("attn", "attn.Wqkv", "attn.Wo", pre_norm="attn_norm"),
                BranchRow("ffn", "mlp.Wi", "mlp.Wo", pre_norm="mlp_norm"),
            ),
            attentions=(AttentionRow("attn"),),
        ),
    ),
    embeddings="embeddings.tok_embeddings",
)

_VIT = FamilyRow(
    stacks=(
        StackRow(
            stack="encoder",
            layers="layers.*",
            linears={
                "attn.q": "attention.q_proj",
                "attn.k": "attention.k_proj",
                "attn.v": "attention.v_proj",
                "attn.o": "attention.o_proj",
                "ffn.up": "mlp.fc1",
                "ffn.down": "mlp.fc2",
            },
            branches=(
                BranchRow("attn", "attention.q_proj", "attention.o_proj", pre_norm="layernorm_before"),
                BranchRow("ffn", "mlp.fc1", "mlp.fc2", pre_norm="layernorm_after"),
            ),
            attentions=(AttentionRow("attention"),),
        ),
    ),
    embeddings="embeddings.patch_embeddings",
    note="parameters can be counted, but not trained: there is no image task",
)

ENCODER_FAMILIES: dict[str, Family] = {
    "bert": _BERT,
    "electra": _BERT,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "distilbert": _DISTILBERT,
    "albert": _ALBERT,
    "deberta-v2": _DEBERTA,
    "modernbert": _MODERNBERT,
    "vit": _VIT,
}
OTHER_ENCODERS = frozenset(
    {
        "bert-generation", "big_bird", "bros", "camembert", "canine", "convbert", "data2vec-text", "deberta", "ernie",
        "esm", "esmc", "eurobert", "fnet", "funnel", "ibert", "layoutlm", "layoutlmv2", "layoutlmv3", "lilt",
        "longformer", "luke", "markuplm", "megatron-bert", "mobilebert", "mpnet", "mra", "nomic_bert", "nystromformer",
        "rembert", "roberta-prelayernorm", "roc_bert", "roformer", "squeezebert", "tapas", "xlm-roberta-xl", "xmod",
        "yoso",
    }
)  # fmt: skip
"""More model types whose attention sees later tokens, unless their config says `is_decoder`; their parts are found."""
