"""Whether tensors hold numbers only: NaN and infinity are found before they are kept or used."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def first_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the name of the first tensor that holds NaN or infinity, or None; waits for the device once."""
    named = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.numel()}
    if not named:
        return None
    finite = torch.stack([torch.isfinite(tensor.detach()).all().cpu() for tensor in named.values()])
    return None if bool(finite.all()) else list(named)[int((~finite).int().argmax())]


def first_beyond(tensors: Mapping[str, Tensor], limit: float) -> str | None:
    """Return the name of the first tensor with a number whose size is above a limit, or None."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel() and float(tensor.detach().abs().max()) > limit:
            return name
    return None
