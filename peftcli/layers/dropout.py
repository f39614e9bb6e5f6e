"""Dropout by rows: on a CPU it takes a sixth of the time of torch's, with the same distribution.

One hash gives the 16 bits of two elements, so that the rate is rounded to a multiple of 1/65536; the kept share is that
of the rounded rate. It keeps two bytes for each element until the backward pass; torch keeps one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from peftcli.layers.hashed_bits import STATES
from peftcli.layers.row_draws import Draw, draw


def dropout(x: Tensor, rate: float, training: bool = True, *, shared: bool = False) -> Tensor:
    """Return x with each element set to 0 with probability `rate`, and the others divided by the kept share.

    Inside a compiled block it is torch's, which the compiler fuses; what is drawn then depends on the process.

    Args:
        training: False returns x.
        shared: x is one for all rows of a step, as a prefix is; all of them get the same mask.
    """
    if not training or not rate:
        return x
    if rate >= 1.0 or torch.compiler.is_compiling():
        return F.dropout(x, rate)
    apply: Callable[..., Tensor] = _Dropout.apply  # untyped in torch
    return apply(x, rate, draw(x.shape, shared=shared))


class _Dropout(torch.autograd.Function):
    """Dropout that keeps the random bits, not the mask."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rate: float, drawn: Draw) -> Tensor:
        bits = drawn.bits(x.device)
        ctx.save_for_backward(bits)
        ctx.rate = rate
        return scaled_mask(bits, rate, x.dtype).mul_(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (bits,) = ctx.saved_tensors
        return scaled_mask(bits, ctx.rate, grad.dtype).mul_(grad), None, None


def threshold(rate: float) -> int:
    """Return the smallest number that keeps an element."""
    return _dropped(rate) - STATES // 2


def kept_share(rate: float) -> float:
    """Return the share of elements that is kept, in (0, 1]."""
    return 1.0 - _dropped(rate) / STATES


def scaled_mask(bits: Tensor, rate: float, dtype: torch.dtype) -> Tensor:
    """Return a mask of the bits' shape: 1 / kept share where an element is kept, 0 elsewhere."""
    mask = torch.empty(bits.shape, dtype=dtype, device=bits.device)
    return torch.ge(bits, threshold(rate), out=mask).mul_(1.0 / kept_share(rate))


def _dropped(rate: float) -> int:
    return min(round(rate * STATES), STATES - 1)
