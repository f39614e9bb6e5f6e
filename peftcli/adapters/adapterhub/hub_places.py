"""Where AdapterHub's library puts its modules into a model of each family (read in its sources, 1.3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftcli.errors import UserError
from peftcli.models.anatomy import Anatomy, BlockRole

NAME = "peftcli"
"""The adapter's name, which is part of every key; the library renames it on loading."""
VERSION = "adapters.1.3.0"

# Families whose adapters are children of a module around the branch's last projection: how many levels above it.
_ABOVE = {"bert": 1, "roberta": 1, "xlm-roberta": 1, "electra": 1, "t5": 2, "mt5": 2}
# Families whose adapters are children of the block.
_ON_BLOCK = ("distilbert", "bart", "mbart", "gpt2", "llama", "mistral", "qwen2", "qwen3")
_BLOCK_NAMES = {
    "attn": "attention_adapters",
    "cross_attn": "cross_attention_adapters",
    "ffn": "output_adapters",
}
FAMILIES = (*_ABOVE, *_ON_BLOCK)


def check_family(anatomy: Anatomy) -> None:
    """Refuse a family whose places in AdapterHub's library are not known here.

    Raises:
        UserError: names those that are.
    """
    if anatomy.family not in FAMILIES:
        raise UserError(
            f"it is not known where AdapterHub's library puts adapters in a {anatomy.family} model",
            suggestion=f"known families: {', '.join(FAMILIES)}; use --to hf-peft or peft merge for others",
        )


def place(anatomy: Anatomy, block: BlockRole) -> str:
    """Return the path that holds the adapters of one branch: `bert.encoder.layer.0.output.adapters`."""
    levels = _ABOVE.get(anatomy.family)
    if levels is None:
        return f"{anatomy.layers[block.stack][block.layer]}.{_BLOCK_NAMES[block.kind]}.adapters"
    return ".".join(block.exit.split(".")[:-levels]) + ".adapters"


def refuse_set(inner: Mapping[str, Any], plain: Mapping[str, Any], where: object) -> None:
    """Refuse options that differ from the values under which they do nothing.

    Raises:
        UserError: names them.
    """
    used = [f"{name}: {inner[name]!r}" for name, value in plain.items() if inner.get(name, value) not in (value, None)]
    if used:
        raise UserError(f"{where} uses {', '.join(used)} of AdapterHub, which has no counterpart here")
