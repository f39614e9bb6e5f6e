"""How families outside the table divide the one projection that makes queries, keys and values."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peftcli.models.families.family_row import Layout

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_LAYOUTS: dict[str, Layout] = {
    "dbrx": "contiguous",
    "gpt_neox_japanese": "per_head",
    "mpt": "contiguous",
    "persimmon": "per_head",
    "phi4_multimodal": "contiguous",
}


def fused_layout(config: PretrainedConfig) -> Layout | None:
    """Return the layout in this family, None where it is not known."""
    if config.model_type == "gpt_bigcode":
        return "contiguous" if config.multi_query else "per_head"
    return _LAYOUTS.get(config.model_type)
