"""The pair of a given rank that is nearest to a matrix (Eckart and Young 1936), by its singular values.

They are taken from the float64 Gram matrix of the shorter side, so that memory is that of the matrix and a square of
its shorter side, and from a thin basis where that holds the whole matrix, as it does for most adapters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

WIDTHS = (32, 128)
"""Columns of the thin bases that are tried."""
_CHUNK = 1024
"""Columns that are squared at a time."""
_ROUNDING = torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class Spectrum:
    """A matrix by its singular vectors on its shorter side.

    Args:
        matrix: (d_out, d_in), float32.
        vectors: (shorter side, k), float32: orthonormal, by falling singular value.
        energies: squared singular values of these, float64: all that stand out of the matrix's rounding.
        total: squared Frobenius norm of the matrix.
    """

    matrix: Tensor
    vectors: Tensor
    energies: Tensor
    total: float

    def rank_for(self, keep: float) -> int:
        """Return the smallest rank that keeps this share of the squared norm, at most that of the matrix."""
        if not len(self.energies):
            return 0
        shares = self.energies.cumsum(0) / self.energies.sum()
        return min(len(shares), int((shares < keep - 1e-12).sum()) + 1)

    def kept(self, rank: int) -> float:
        """Return what of the squared norm a pair of this rank keeps."""
        return float(self.energies[:rank].sum())

    def pair(self, rank: int) -> tuple[Tensor, Tensor]:
        """Return A (k, d_in) and B (d_out, k) of B A, the nearest to the matrix; k is at most `rank`, at least 1."""
        out, d_in = self.matrix.shape
        if not len(self.energies):
            return torch.zeros(1, d_in), torch.zeros(out, 1)
        roots = self.energies[:rank].sqrt().sqrt().float()  # of the singular values: both factors get a share
        thin = self.vectors[:, :rank]
        if out <= d_in:
            return (thin.T @ self.matrix) / roots[:, None], thin * roots
        return (thin * roots).T.contiguous(), (self.matrix @ thin) / roots


def below_rank(rank: int, ranks: Mapping[str, int]) -> list[str]:
    """Return a note that changes of a smaller rank are not cut, if there are any.

    Args:
        rank: that was asked for.
        ranks: the largest that each change can have, by where it is.
    """
    smaller = [where for where, own in ranks.items() if own < rank]
    if not smaller:
        return []
    least = min(smaller, key=lambda where: ranks[where])
    own = f"{ranks[least]} at {least}"
    return [f"rank {rank} is above that of {len(smaller)} of {len(ranks)} changes, which keep their own ({own})"]


def spectrum(matrix: Tensor, noise: float = 0.0) -> Spectrum:
    """Return the singular values and vectors of a matrix.

    Args:
        matrix: (d_out, d_in), float32.
        noise: squared Frobenius norm of the rounding in it: singular values that are no larger are left out.
    """
    total = float(torch.linalg.vector_norm(matrix, dtype=torch.float64) ** 2)
    if total == 0.0:
        return Spectrum(matrix, torch.zeros(min(matrix.shape), 0), torch.zeros(0, dtype=torch.float64), 0.0)
    short = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    floor = max(noise, total * _ROUNDING**2)
    basis = _thin_basis(short, total, floor)
    energies, vectors = torch.linalg.eigh(_gram(short, basis))
    energies, vectors = energies.flip(0).clamp_(min=0.0), vectors.flip(1)
    standing = int((energies > 4 * floor / len(short)).sum())  # 4: random values reach twice their mean singular value
    found = vectors[:, :standing]
    return Spectrum(matrix, (found if basis is None else basis @ found).float(), energies[:standing], total)


def _thin_basis(short: Tensor, total: float, floor: float) -> Tensor | None:
    """Return an orthonormal basis, float64, of a few columns that holds the whole matrix but its rounding, or None."""
    for width in WIDTHS:
        if 2 * width > len(short):
            return None
        draws = torch.randn(short.shape[1], width, generator=torch.Generator().manual_seed(0))
        seen = torch.zeros(len(short), width, dtype=torch.float64)
        for start, part in _columns(short):
            seen.addmm_(part, draws[start : start + part.shape[1]].double())
        basis: Tensor = torch.linalg.qr(seen)[0]
        if total - float(_gram(short, basis).trace()) <= floor + 1e-12 * total:  # the sums themselves are rounded
            return basis
    return None


def _gram(short: Tensor, basis: Tensor | None) -> Tensor:
    """Return M M^T in float64, or that of M in a basis."""
    size = len(short) if basis is None else basis.shape[1]
    gram = torch.zeros(size, size, dtype=torch.float64)
    for _, part in _columns(short):
        own = part if basis is None else basis.T @ part
        gram.addmm_(own, own.T)
    return gram


def _columns(matrix: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield the columns in float64, some at a time, with the number of the first."""
    for start in range(0, matrix.shape[1], _CHUNK):
        yield start, matrix[:, start : start + _CHUNK].double()


def widened(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the pair with zeros up to a rank."""
    more = rank - len(a)
    if more <= 0:
        return a.contiguous(), b.contiguous()
    return torch.cat([a, a.new_zeros(more, a.shape[1])]), torch.cat([b, b.new_zeros(len(b), more)], dim=1)
