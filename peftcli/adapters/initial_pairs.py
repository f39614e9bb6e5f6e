"""Convert PiSSA's change, which subtracts its initial pair, to and from one pair of twice the rank."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def stack_initial(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Write B A - B0 A0 as one product: [B, -B0] [A; A0]."""
    stacked = dict(state)
    for key in [key.removesuffix(".initial_A") for key in state if key.endswith(".initial_A")]:
        a, b = stacked.pop(f"{key}.initial_A"), stacked.pop(f"{key}.initial_B")
        stacked[f"{key}.lora_A.weight"] = torch.cat([state[f"{key}.lora_A.weight"], a])
        stacked[f"{key}.lora_B.weight"] = torch.cat([state[f"{key}.lora_B.weight"], -b], dim=1)
    return stacked


def split_initial(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo `stack_initial`, bit for bit."""
    split = dict(state)
    for key in [key.removesuffix(".lora_A.weight") for key in state if key.endswith(".lora_A.weight")]:
        a, a0 = state[f"{key}.lora_A.weight"].chunk(2)
        b, b0 = state[f"{key}.lora_B.weight"].chunk(2, dim=1)
        split |= {f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b}
        split |= {f"{key}.initial_A": a0, f"{key}.initial_B": -b0}
    return split
