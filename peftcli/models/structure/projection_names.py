"""The roles that the names and widths of linear modules suggest, in families that are not in the table."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable

# Usual names of the projections, by role: the last part of a module's path.
_ATTENTION_NAMES = {
    "q": {"q", "q_proj", "query", "q_lin", "query_proj", "wq", "to_q", "q_linear", "linear_q", "q_attn", "project_q"},
    "k": {"k", "k_proj", "key", "k_lin", "key_proj", "wk", "to_k", "k_linear", "linear_k", "project_k"},
    "v": {"v", "v_proj", "value", "v_lin", "value_proj", "wv", "to_v", "v_linear", "linear_v", "project_v"},
    "o": {
        "o",
        "o_proj",
        "out_proj",
        "out_lin",
        "wo",
        "to_out",
        "dense",
        "c_proj",
        "linear_out",
        "proj",
        "out",
        "attention_out",
    },
}
FUSED_ATTENTION_NAMES = {"c_attn", "qkv", "qkv_proj", "query_key_value", "wqkv", "in_proj", "in_proj_qkv", "att_proj"}
_MIXER_NAMES = {"in_proj", "in_proj_qkv"}  # outside an attention: of a state space model
GATE_AND_UP_NAMES = {"gate_up_proj", "wi", "input_linear"}
"""Projections that are the gate, which an activation follows, and then the up projection, in halves."""
_FUSED_FFN_NAMES = {"gate_up_proj", "wi_fused", "up_gate_proj", "dense_h_to_4h_fused"}
FFN_NAMES = {
    "ffn.gate": {"gate_proj", "wi_0", "gate", "w1"},
    "ffn.up": {
        "up_proj",
        "fc1",
        "c_fc",
        "lin1",
        "wi",
        "wi_1",
        "w3",
        "dense_h_to_4h",
        "fc_in",
        "linear_1",
        "linear1",
        "dense_in",
    },
    "ffn.down": {
        "down_proj",
        "fc2",
        "c_proj",
        "lin2",
        "wo",
        "w2",
        "dense_4h_to_h",
        "fc_out",
        "linear_2",
        "linear2",
        "output_linear",
    },
}
UNKNOWN_LAYOUT = "a fused projection of unknown layout; target it by its name, or name its roles in model.anatomy"
ATTENTION_WORD = re.compile(r"(attn|attention|(^|\.)att)", re.IGNORECASE)
_ATTENTION_CLASS = re.compile(r"(attention|attn)\d?$", re.IGNORECASE)
_CROSS_WORD = re.compile(r"(cross|encdec|encoder_attn)", re.IGNORECASE)


def in_attention(path: str, classes: Iterable[str]) -> bool:
    """Tell whether a module is part of an attention.

    Args:
        path: of the modules around it, within the block.
        classes: the names of their classes.
    """
    return bool(ATTENTION_WORD.search(path)) or any(_ATTENTION_CLASS.search(name) for name in classes)


def role_of(
    path: str, width_in: int, width_out: int, hidden: int, *, attention: bool, entering: Container[int]
) -> str | None:
    """Return the role that a name suggests and the shape allows, or `fused`, or None.

    Args:
        path: of a linear module, within its block.
        attention: whether it is part of an attention.
        entering: widths of what queries, keys and values are made from.
    """
    last = path.lower().rpartition(".")[2]
    if attention:
        if last in FUSED_ATTENTION_NAMES:
            return "fused"
        prefix = "cross_attn" if _CROSS_WORD.search(path) else "attn"
        for letter, names in _ATTENTION_NAMES.items():
            fits = width_out == hidden if letter == "o" else width_in in entering or prefix == "cross_attn"
            if last in names and fits:
                return f"{prefix}.{letter}"
        return None
    if last in FUSED_ATTENTION_NAMES - _MIXER_NAMES or last in _FUSED_FFN_NAMES:
        return "fused"
    if last == "dense" and width_in != width_out:  # BERT's intermediate.dense and output.dense
        return "ffn.up" if width_in == hidden else "ffn.down" if width_out == hidden else None
    for role, names in FFN_NAMES.items():
        fits = width_out == hidden if role == "ffn.down" else width_in == hidden
        if last in names and fits:
            return role
    return None
