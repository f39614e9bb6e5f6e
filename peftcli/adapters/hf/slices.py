"""Slices of fused projections, which HF peft does not know, as changes of the whole module that are equal to them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from peftcli.adapters.format import AdapterMeta, SavedTarget
from peftcli.adapters.hf import lora as hf_lora
from peftcli.errors import UserError
from peftcli.methods.lora import LoraParams
from peftcli.models.anatomy import FusedSlice


def feature_numbers(target: SavedTarget) -> Tensor:
    """Return which output features of the fused module a slice has, in its own order."""
    assert target.slice is not None  # the caller leaves out whole modules
    groups, width, start, size = target.slice
    return FusedSlice(groups, width, start, size).take(torch.arange(groups * width))


def with_whole_targets(meta: AdapterMeta) -> AdapterMeta:
    """Return the record with every fused module once, under its path; whole modules as they are."""
    fused = {t.module: SavedTarget(t.module, t.module, None, t.kind) for t in meta.targets if t.slice}
    targets = (*(target for target in meta.targets if target.slice is None), *fused.values())
    return replace(meta, targets=targets, target_names=meta.target_names or tuple(t.module for t in targets))


def pad_vectors(state: Mapping[str, Tensor], meta: AdapterMeta) -> tuple[dict[str, Tensor], AdapterMeta]:
    """Return (IA)3's tensors and record with each fused module's slices as one vector that is one outside them."""
    padded = dict(state)
    for target in meta.targets:
        if target.slice is None:
            continue
        groups, width, _, _ = target.slice
        vector = padded.pop(f"{target.key}.ia3_l")
        whole = padded.setdefault(f"{target.module}.ia3_l", torch.ones(groups * width, 1, dtype=vector.dtype))
        whole[feature_numbers(target)] = vector
    return padded, with_whole_targets(meta)


@dataclass(frozen=True)
class _Pair:
    """One slice's factors and scale; `rows` are its features among the module's."""

    a: Tensor
    b: Tensor
    scale: float
    rows: Tensor


def pad_pairs(
    state: Mapping[str, Tensor], params: LoraParams, meta: AdapterMeta
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return HF's config and tensors with each fused module's slices as one pair: A stacked, B zero outside its rows.

    Equal to the slices by construction; the rank is the sum of theirs, and the module's scale that of its first slice,
    with other scales folded into B.

    Raises:
        UserError: DoRA, or biases of a slice: both need values of the base that are not in the adapter.
    """
    if params.use_dora or any(key.endswith(".bias_delta") for key in state):
        what = "use_dora" if params.use_dora else "bias: lora_only"
        raise UserError(
            f"{what} on a slice of a fused projection has no equal in HF peft",
            suggestion="use peft merge, or target the fused module whole",
        )
    plain = hf_lora.stack_initial(state) if params.starts_from_base else dict(state)
    twice = 2 if params.starts_from_base else 1
    pairs: dict[str, list[_Pair]] = {}
    for target in meta.targets:
        if target.slice is None:
            continue
        a, b = plain.pop(f"{target.key}.lora_A.weight"), plain.pop(f"{target.key}.lora_B.weight")
        scale = params.scale_of(target.role, target.key, len(a) // twice)
        pairs.setdefault(target.module, []).append(_Pair(a, b, scale, feature_numbers(target)))
    ranks, alphas = {}, {}
    for module, slices in pairs.items():
        groups, width, _, _ = next(t.slice for t in meta.targets if t.module == module and t.slice)
        a, b = _stack(slices, groups * width)
        plain[f"{module}.lora_A.weight"], plain[f"{module}.lora_B.weight"] = a, b
        path = f"^{re.escape(module)}"
        ranks[path] = len(a)
        alphas[path] = slices[0].scale * (len(a) ** 0.5 if params.use_rslora else len(a))
    whole = with_whole_targets(meta)
    config = hf_lora.config(params, whole, plain)
    config["rank_pattern"] |= ranks
    config["alpha_pattern"] |= alphas
    settled = params.model_copy(update={"init_lora_weights": True})  # the initial pair is stacked already
    return config, hf_lora.to_file(plain, settled, whole)


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
