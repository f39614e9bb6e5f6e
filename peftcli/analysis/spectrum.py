"""The singular values of a low-rank change, from its small factors, and how many of them matter."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Spectrum:
    """Singular values, largest first.

    Args:
        values: of the change, scale included; as many as the factors have ranks.
    """

    values: tuple[float, ...]

    @property
    def norm(self) -> float:
        """Frobenius norm of the change."""
        return float(sum(value * value for value in self.values) ** 0.5)

    @cached_property
    def effective_rank(self) -> float:
        """exp of the entropy of the normalised singular values (Roy and Vetterli 2007): k equal values give k."""
        values = torch.tensor(self.values, dtype=torch.float64)
        shares = values[values > 0] / values.sum()
        return float(torch.exp(-(shares * shares.log()).sum())) if len(shares) else 0.0

    def rank_of_energy(self, share: float) -> int:
        """Return the fewest singular values whose squares make up `share` of the sum of all squares; 0 if all are 0."""
        squares = torch.tensor(self.values, dtype=torch.float64).square()
        if not len(squares) or not squares.sum():
            return 0
        reached = squares.cumsum(0) >= share * squares.sum() * (1 - 1e-12)  # rounding of the sum itself
        return int(reached.nonzero()[0]) + 1

    @property
    def flatness(self) -> float:
        """The last singular value over the first: 1 for a flat spectrum, near 0 for one that decays to nothing."""
        return self.values[-1] / self.values[0] if self.values and self.values[0] > 0 else 0.0


@torch.no_grad()
def product_spectrum(left: Tensor, right: Tensor, scale: float = 1.0) -> Spectrum:
    """Return the spectrum of scale * left @ right without building that matrix.

    left = Q1 R1 and right^T = Q2 R2 have orthonormal Q, so the product has the singular values of R1 R2^T, which is
    k x k (k' x k'' where a side is narrower than k).

    Args:
        left: (d_out, k).
        right: (k, d_in).
        scale: a factor of the whole.
    """
    if left.shape[1] == 0:
        return Spectrum(())
    inner = _triangle(left) @ _triangle(right.T).T
    found = torch.linalg.svdvals(inner) * abs(scale)
    return Spectrum(tuple(float(value) for value in found))


def _triangle(matrix: Tensor) -> Tensor:
    """Return R of the reduced QR, in float64: the smallest singular values are differences of large numbers."""
    triangle: Tensor = torch.linalg.qr(matrix.double(), mode="r").R
    return triangle
