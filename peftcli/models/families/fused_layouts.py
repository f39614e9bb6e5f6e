"""How families outside the table divide the one projection that makes queries, keys and values."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peftcli.models.families.family_row import FusedRow, Layout

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_ROLES = ("attn.q", "attn.k", "attn.v")
_LAYOUTS: dict[str, Layout] = {
    "dbrx": "contiguous",
    "deberta": "per_head",
    "gpt_neox_japanese": "per_head",
    "modernbert": "contiguous",  # as a part beside a tower: ModernVBERT
    "mpt": "contiguous",
    "openai-gpt": "contiguous",
    "persimmon": "per_head",
    "phi4_multimodal": "contiguous",
}
_CODEGEN_PARTS = 4
"""The cores that CodeGen was trained on: each had a quarter of the queries, then of the values, then of the keys."""


def fused_layout(config: PretrainedConfig) -> FusedRow | None:
    """Return the roles and their layout in this family, None where it is not known."""
    if config.model_type == "gpt_bigcode":
        return FusedRow(_ROLES, "contiguous" if config.multi_query else "per_head")
    if config.model_type == "codegen":
        size = int(config.n_embd) // _CODEGEN_PARTS
        return FusedRow(("attn.q", "attn.v", "attn.k"), "per_head", (size, size, size))
    layout = _LAYOUTS.get(config.model_type)
    return FusedRow(_ROLES, layout) if layout else None
