"""Write a saved adapter in HF peft's format, slices of fused projections as their padded equivalent."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from peftcli.adapters import hf_lora
from peftcli.adapters.card import model_card
from peftcli.adapters.format import CARD, CONFIG, WEIGHTS, AdapterMeta, SavedTarget, write_json
from peftcli.adapters.hf_peft import FORMATS, hf_format
from peftcli.adapters.loading import SavedAdapter, load_adapter
from peftcli.adapters.saving import write_tensors
from peftcli.atomic import new_directory
from peftcli.errors import UserError
from peftcli.methods.lora import LoraParams
from peftcli.models.anatomy import FusedSlice


def to_hf_peft(directory: Path | str, out: Path | str) -> None:
    """Write the adapter of `directory` into `out` for HF peft, and nothing that only this project reads.

    Args:
        directory: a saved adapter.
        out: a new directory; what is there is replaced.

    Raises:
        UserError: HF peft has no such method, or cannot hold these parameters; says which and what to do instead.
    """
    saved = load_adapter(directory)
    config, tensors = _layout(saved, Path(directory))
    with new_directory(Path(out)) as partial:
        write_tensors(partial / WEIGHTS, tensors)
        write_json(partial / CONFIG, config)
        (partial / CARD).write_text(model_card(saved.params, saved.meta, loads_in_hf=True), encoding="utf-8")


def _layout(saved: SavedAdapter, where: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    theirs = hf_format(saved.params, saved.meta)
    if theirs:
        return theirs.config(saved.params, saved.meta), theirs.to_file(saved.state, saved.params, saved.meta)
    if isinstance(saved.params, LoraParams):
        return pad_slices(saved.state, saved.params, saved.meta)
    known = FORMATS.get(saved.params.name)
    reason = known.why_not(saved.params, saved.meta) if known else "HF peft has no such method"
    raise UserError(f"{where}: {saved.params.name} cannot be exported: {reason}", suggestion="use peft merge instead")


@dataclass(frozen=True)
class _Pair:
    """One slice's factors and scale; `rows` are its features among the module's."""

    a: Tensor
    b: Tensor
    scale: float
    rows: Tensor


def pad_slices(
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
        pairs.setdefault(target.module, []).append(_Pair(a, b, scale, _feature_numbers(target)))
    ranks, alphas = {}, {}
    for module, slices in pairs.items():
        groups, width, _, _ = next(t.slice for t in meta.targets if t.module == module and t.slice)
        a, b = _stack(slices, groups * width)
        plain[f"{module}.lora_A.weight"], plain[f"{module}.lora_B.weight"] = a, b
        path = f"^{re.escape(module)}"
        ranks[path] = len(a)
        alphas[path] = slices[0].scale * (len(a) ** 0.5 if params.use_rslora else len(a))
    whole = replace(meta, targets=_whole_targets(meta), target_names=_whole_names(meta))
    config = hf_lora.config(params, whole)
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


def _feature_numbers(target: SavedTarget) -> Tensor:
    """Return which output features of the fused module a slice has, in its own order."""
    assert target.slice is not None  # the caller leaves out whole modules
    groups, width, start, size = target.slice
    return FusedSlice(groups, width, start, size).take(torch.arange(groups * width))


def _whole_targets(meta: AdapterMeta) -> tuple[SavedTarget, ...]:
    """Whole modules as they are; a fused module once, under its path."""
    fused = {t.module: SavedTarget(t.module, t.module, None, t.kind) for t in meta.targets if t.slice}
    return (*(target for target in meta.targets if target.slice is None), *fused.values())


def _whole_names(meta: AdapterMeta) -> tuple[str, ...]:
    return meta.target_names or tuple(target.module for target in _whole_targets(meta))
