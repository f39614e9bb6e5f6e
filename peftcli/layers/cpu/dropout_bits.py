"""Random bits for dropout, which a seed reproduces.

On a CPU `bernoulli_` takes five times as long, and dropout would then take as long as the matrix products around it.
One random number gives the 16 bits of four elements, so that the rate is rounded to a multiple of 1/65536. The kept
share is that of the rounded rate.
"""

from __future__ import annotations

import torch
from torch import Tensor

STATES = 65536


def draw_seed() -> int:
    """Return a seed from the CPU's random state, which a resumed run restores, without waiting for a device."""
    return int(torch.randint(2**62, ()).item())


def draw_bits(shape: torch.Size, device: torch.device, seed: int) -> Tensor:
    """Return a tensor of uniformly distributed int16 numbers."""
    count = shape.numel()
    generator = torch.Generator(device).manual_seed(seed)
    bits = torch.empty((count + 3) // 4, dtype=torch.int64, device=device)
    bits.random_(-(2**63), None, generator=generator)
    return bits.view(torch.int16)[:count].view(shape)


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
