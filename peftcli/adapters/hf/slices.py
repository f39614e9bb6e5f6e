"""Slices of fused projections, expressed in the features of the whole module, because HF peft has no slices."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from peftcli.adapters.format import AdapterMeta, SavedTarget
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
