"""Dropout on a CPU with a faster random generator: it takes a sixth of the time of torch's, with the same distribution.

It keeps two bytes for each element until the backward pass; torch keeps one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from peftcli.layers.cpu.dropout_bits import draw_bits, draw_seed, scaled_mask

SMALLEST = 4096
"""Number of elements below which torch's function is faster, because seeding a generator takes longer."""


def fits(x: Tensor, rate: float, training: bool, inplace: bool) -> bool:
    """Tell whether a call of torch's dropout is computed here."""
    plain = training and not inplace and 0.0 < rate < 1.0
    return plain and x.device.type == "cpu" and x.is_floating_point() and x.numel() >= SMALLEST


def cpu_dropout(x: Tensor, rate: float) -> Tensor:
    """Return x with each element set to 0 with probability `rate`, and the others divided by the kept share."""
    apply: Callable[..., Tensor] = _Dropout.apply  # untyped in torch
    return apply(x, rate, draw_seed())


class _Dropout(torch.autograd.Function):
    """Dropout that keeps the random bits, not the mask."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rate: float, seed: int) -> Tensor:
        bits = draw_bits(x.shape, x.device, seed)
        ctx.save_for_backward(bits)
        ctx.rate = rate
        return scaled_mask(bits, rate, x.dtype).mul_(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (bits,) = ctx.saved_tensors
        return scaled_mask(bits, ctx.rate, grad.dtype).mul_(grad), None, None
