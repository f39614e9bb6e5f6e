"""Convert PiSSA's change, which subtracts its initial pair, to and from one pair of twice the rank.

LoftQ's initial pair matters on the unquantised base alone; others load its adapter onto the quantised one.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from peftcli.errors import UserError
from peftcli.methods.lora import LoraParams


def one_pair(state: Mapping[str, Tensor], params: LoraParams) -> dict[str, Tensor]:
    """Return one pair at each place, for the base that was trained on."""
    if params.starts_from_base:
        return stack_initial(state)
    return {key: tensor for key, tensor in state.items() if not key.endswith((".initial_A", ".initial_B"))}


def stack_initial(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Write B A - B0 A0 as one product: [B, -B0] [A; A0]."""
    stacked = dict(state)
    for key in [key.removesuffix(".initial_A") for key in state if key.endswith(".initial_A")]:
        a, b = stacked.pop(f"{key}.initial_A"), stacked.pop(f"{key}.initial_B")
        stacked[f"{key}.lora_A.weight"] = torch.cat([state[f"{key}.lora_A.weight"], a])
        stacked[f"{key}.lora_B.weight"] = torch.cat([state[f"{key}.lora_B.weight"], -b], dim=1)
    return stacked


def split_initial(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo `stack_initial`, bit for bit.

    Raises:
        UserError: a pair is not one of twice the rank.
    """
    split = dict(state)
    for key in [key.removesuffix(".lora_A.weight") for key in state if key.endswith(".lora_A.weight")]:
        pair_a, pair_b = state[f"{key}.lora_A.weight"], state.get(f"{key}.lora_B.weight")
        if pair_b is None or pair_b.shape[1:] != pair_a.shape[:1] or len(pair_a) % 2:
            raise UserError(f"{key} has no pair of twice the rank, as init_lora_weights says")
        a, a0 = pair_a.chunk(2)
        b, b0 = pair_b.chunk(2, dim=1)
        split |= {f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b}
        split |= {f"{key}.initial_A": a0, f"{key}.initial_B": -b0}
    return split
