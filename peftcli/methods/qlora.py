"""QLoRA: LoRA on every linear of the blocks, over a base held in 4 bits (Dettmers et al. 2023, arXiv:2305.14314).

Y = X dequant(W_nf4) + (alpha / r) X A^T B^T: NormalFloat-4 codes in blocks of 64 with doubly quantised constants,
through bitsandbytes. The hyper-parameters are LoRA's with its defaults, and `all-linear`; the official Guanaco runs
use r 64, alpha 16 and dropout 0.1 (0.05 above 13B). A run merges into the unquantised base.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from peftcli.methods.lora import LoraMethod, LoraParams


class QLoraParams(LoraParams):
    """Hyper-parameters of QLoRA: LoRA's."""

    name: Literal["qlora"] = "qlora"  # type: ignore[assignment]  # every method overrides the name
    target_modules: list[str] | str = "all-linear"
    """Roles (attn.q, ffn.up, attn, ffn), module names, `all-linear`, or one regular expression (a string)."""


class QLoraMethod(LoraMethod):
    """QLoRA: LoRA, on a base that is loaded in 4 bits."""

    info = replace(
        LoraMethod.info,
        name="qlora",
        summary="LoRA on all linears over a base held in 4-bit NormalFloat with double quantisation.",
        paper="Dettmers et al. 2023, arXiv:2305.14314",
        params=QLoraParams,
        learning_rate=1e-3,  # measured on the demo; the official code takes 2e-4 for 7B and 13B, 1e-4 above
        forces_4bit=True,
    )


METHOD = QLoraMethod()
