"""The table of model families, by `config.model_type`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peftcli.models.families.decoders import DECODER_FAMILIES
from peftcli.models.families.encoder_decoders import SEQ2SEQ_FAMILIES
from peftcli.models.families.encoders import ENCODER_FAMILIES
from peftcli.models.families.family_row import Family, FamilyRow
from peftcli.models.families.text_parts import TEXT_PARTS

if TYPE_CHECKING:
    from transformers import PretrainedConfig

FAMILIES: dict[str, Family] = {**ENCODER_FAMILIES, **DECODER_FAMILIES, **SEQ2SEQ_FAMILIES}


def family_row(config: PretrainedConfig) -> FamilyRow | None:
    """Return the row of the config's family, or None if it is not in the table.

    A model with towers beside its text has the row of the text part, where it has none of its own.
    """
    family = FAMILIES.get(config.model_type)
    if family is None and not config.is_encoder_decoder:
        config = config.get_text_config()
        family = TEXT_PARTS.get(config.model_type)
    return family(config) if callable(family) else family
