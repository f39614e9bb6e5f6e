"""The text parts of models with towers of images or sound, by the `model_type` of their part of the config."""

from __future__ import annotations

from peftcli.models.families.decoders import DECODER_FAMILIES
from peftcli.models.families.family_row import Family

TEXT_PARTS: dict[str, Family] = {
    **DECODER_FAMILIES,
    "qwen2_vl_text": DECODER_FAMILIES["qwen2"],
    "qwen2_5_vl_text": DECODER_FAMILIES["qwen2"],
    "qwen3_vl_text": DECODER_FAMILIES["qwen3"],
    "ministral3": DECODER_FAMILIES["mistral"],
}

LOADED_ALONE = ("llama4",)
"""Types whose text part is loaded by its own class: that of the whole fails without images (transformers 5.24)."""
