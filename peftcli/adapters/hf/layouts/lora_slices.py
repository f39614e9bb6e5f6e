"""Convert LoRA on slices of fused projections into an equal pair for the whole module, which HF peft can hold."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from peftcli.adapters.format import AdapterMeta
from peftcli.adapters.hf.slices import feature_numbers, with_whole_targets
from peftcli.adapters.initial_pairs import one_pair
from peftcli.errors import UserError
from peftcli.methods.lora import LoraParams


@dataclass(frozen=True)
class PaddedPairs:
    """A LoRA whose targets are whole modules.

    Args:
        state: its tensors by our keys; PiSSA's initial pairs are stacked.
        meta: the record, with each fused module once.
        ranks, alphas: HF's rank_pattern and alpha_pattern of the fused modules.
    """

    state: dict[str, Tensor]
    meta: AdapterMeta
    ranks: dict[str, int]
    alphas: dict[str, float]


@dataclass(frozen=True)
class _Pair:
    """One slice's factors and scale; `rows` are the numbers of its output features within the module."""

    a: Tensor
    b: Tensor
    scale: float
    rows: Tensor


def pad_pairs(state: Mapping[str, Tensor], params: LoraParams, meta: AdapterMeta) -> PaddedPairs:
    """Return each fused module's slices as one pair: A stacked, B zero outside its rows.

    Equal to the slices by construction; the rank is the sum of theirs, and the module's scale that of its first slice,
    with other scales folded into B.

    Raises:
        UserError: DoRA, or biases of a slice: both need values of the base that are not in the adapter.
    """
    if params.use_dora or any(key.endswith(".bias_delta") for key in state):
        what = "use_dora" if params.use_dora else "bias: lora_only"
        raise UserError(
            f"{what} on a slice of a fused projection has no counterpart in HF peft",
            suggestion="use peft merge, or target the fused module whole",
        )
    plain = one_pair(state, params)
    twice = 2 if params.starts_from_base else 1
    pairs: dict[str, list[_Pair]] = {}
    for target in meta.targets:
        if target.slice is None:
            continue
        a, b = plain.pop(f"{target.key}.lora_A.weight"), plain.pop(f"{target.key}.lora_B.weight")
        scale = params.scale_of(target.role, target.key, len(a) // twice)
        pairs.setdefault(target.module, []).append(_Pair(a, b, scale, feature_numbers(target)))
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for module, slices in pairs.items():
        groups, width, _, _ = next(t.slice for t in meta.targets if t.module == module and t.slice)
        a, b = _stack(slices, groups * width)
        plain[f"{module}.lora_A.weight"], plain[f"{module}.lora_B.weight"] = a, b
        path = f"^{re.escape(module)}"
        ranks[path] = len(a)
        alphas[path] = slices[0].scale * (len(a) ** 0.5 if params.use_rslora else len(a))
    return PaddedPairs(plain, with_whole_targets(meta), ranks, alphas)


def _stack(slices: list[_Pair], width: int) -> tuple[Tensor, Tensor]:
    """Return A: (sum of ranks, d_in) and B: (width, sum of ranks)."""
    a = torch.cat([pair.a for pair in slices])
    b = torch.zeros(width, len(a), dtype=a.dtype)
    column = 0
    for pair in slices:
        rank = len(pair.a)
        b[pair.rows, column : column + rank] = pair.b * (pair.scale / slices[0].scale)
        column += rank
    return a, b
