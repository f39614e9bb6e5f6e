"""Random bits for dropout: the same for the same seed, and cheap to draw.

Saves time: `bernoulli_` takes five times as long on a CPU, where dropout then costs as much as the products around it.
16 random bits stand for an element, four elements a draw, so that a rate is rounded to 1/65536; the share that is kept
is that of the rounded rate.
"""

from __future__ import annotations

import torch
from torch import Tensor

STATES = 65536


def draw_seed() -> int:
    """Return a seed from the CPU's random state: reproducible, resumable, and without a wait for a device."""
    return int(torch.randint(2**62, ()).item())


def draw_bits(shape: torch.Size, device: torch.device, seed: int) -> Tensor:
    """Return (shape) int16, uniform over all its values."""
    count = shape.numel()
    generator = torch.Generator(device).manual_seed(seed)
    bits = torch.empty((count + 3) // 4, dtype=torch.int64, device=device)
    bits.random_(-(2**63), None, generator=generator)
    return bits.view(torch.int16)[:count].view(shape)


def threshold(rate: float) -> int:
    """Return the smallest bits of an element that is kept."""
    return _dropped(rate) - STATES // 2


def kept_share(rate: float) -> float:
    """Return the share of elements that is kept, in (0, 1]."""
    return 1.0 - _dropped(rate) / STATES


def scaled_mask(bits: Tensor, rate: float, dtype: torch.dtype) -> Tensor:
    """Return (shape) of `dtype`: 1 / kept share where an element is kept, 0 elsewhere."""
    mask = torch.empty(bits.shape, dtype=dtype, device=bits.device)
    return torch.ge(bits, threshold(rate), out=mask).mul_(1.0 / kept_share(rate))


def _dropped(rate: float) -> int:
    return min(round(rate * STATES), STATES - 1)
