"""OFT's layers: block-diagonal rotations of a projection's input, or of an embedding's output (Qiu et al. 2023, 2025).

A block's rotation R comes from a skew-symmetric matrix Q, of which the entries above the diagonal are trained: by
Cayley's transform (I - Q)(I + Q)^-1, or by the first terms of (I + Q)(I - Q)^-1 = I + 2Q + 2Q^2 + ..., which needs no
inverse (OFTv2). Both are the identity at Q = 0. A block of the input x becomes x R.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from peftcli.layers.base_linear import BaseLinear
from peftcli.layers.dropout import dropout
from peftcli.layers.parts.lora import Factor
from peftcli.layers.site import Part
from peftcli.layers.without_autocast import without_autocast


def nearest_divisor(width: int, wanted: int) -> int:
    """Return the divisor of `width` that is nearest to `wanted`, the smaller of two; HF peft adjusts sizes so."""
    if wanted >= width:
        return width
    divisors = [number for number in range(1, width + 1) if width % number == 0]
    return min(divisors, key=lambda number: (abs(number - wanted), number))


def block_size_of(angles: int) -> int:
    """Return the size b of blocks that have this many trained entries, b (b - 1) / 2."""
    return (1 + math.isqrt(1 + 8 * angles)) // 2


def skew(angles: Tensor) -> Tensor:
    """Return the skew-symmetric matrices, (blocks, b, b), of entries above the diagonal, (blocks, b (b - 1) / 2)."""
    size = block_size_of(angles.shape[1])
    rows, columns = torch.triu_indices(size, size, 1, device=angles.device)
    flat = torch.zeros(len(angles), size * size, dtype=angles.dtype, device=angles.device)
    upper = flat.index_copy(1, rows * size + columns, angles).view(-1, size, size)
    return upper - upper.transpose(1, 2)


def rotations_less_identity(angles: Tensor, terms: int | None) -> Tensor:
    """Return R - I of every block, (blocks, b, b): what a rotation adds, without the rounding of a sum near 1.

    Args:
        angles: (blocks, b (b - 1) / 2).
        terms: of the series; None for Cayley's transform. HF peft's count: 2 is I + 2Q, 5 (its default) is
            I + 2Q + 2Q^2 + 2Q^3 + Q^4; 3 and 4 are the same, I + 2Q + 2Q^2 + Q^3.
    """
    q = skew(angles)
    if terms is None:
        identity = torch.eye(q.shape[1], dtype=q.dtype, device=q.device).expand_as(q)
        solved: Tensor = torch.linalg.solve(identity + q, -2.0 * q, left=False)  # (I - Q) - (I + Q) = -2Q
        return solved
    total = 2.0 * q
    if terms > 2:
        power = q @ q
        total = total + 2.0 * power
        for _ in range(3, terms - 1):
            power = power @ q
            total = total + 2.0 * power
        total = total + power @ q
    return total


def rotate_blocks(x: Tensor, blocks: Tensor) -> Tensor:
    """Multiply each block of the last axis of x: (..., blocks * b) by its matrix; a single matrix serves all."""
    size = blocks.shape[-1]
    parts = x.reshape(*x.shape[:-1], x.shape[-1] // size, size)
    if len(blocks) == 1:
        return (parts @ blocks[0]).reshape(x.shape)
    return torch.einsum("...kc,kcd->...kd", parts, blocks).reshape(x.shape)


def within_bound(angles: Tensor, eps: float) -> Tensor:
    """Return the entries with each Q shrunk to a norm of at most eps over the root of the number of blocks (COFT)."""
    limit = eps / math.sqrt(len(angles))
    norm = math.sqrt(2.0) * torch.linalg.vector_norm(angles, dim=1, keepdim=True)  # both halves of Q
    return torch.where(norm <= limit, angles, angles * (limit / norm))


class Rotation(Part):
    """Rotates blocks of what it receives: a projection's input, or what an embedding gives.

    Args:
        width: features that are rotated.
        block_size: b, a divisor of `width`.
        shared: one rotation for all blocks.
        terms: as in `rotations_less_identity`.
        eps: the largest norm of Q, divided by the root of the number of trained blocks (COFT); None for no bound.
        dropout: how often a block does not turn in a training step; where one rotation is shared, it always does.
        random: start from small random rotations, no identity; for tests.
        name: of the parameters' module, as HF peft calls it.
        device: of the parameters.
    """

    def __init__(
        self,
        width: int,
        block_size: int,
        *,
        shared: bool = False,
        terms: int | None = 5,
        eps: float | None = None,
        dropout: float = 0.0,
        random: bool = False,
        name: str = "oft_R",
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        blocks = 1 if shared else width // block_size
        factor = Factor(blocks, block_size * (block_size - 1) // 2, device)
        self.add_module(name, factor)
        self._name = name
        self.terms, self.eps, self.dropout = terms, eps, dropout
        with torch.no_grad():
            factor.weight.zero_()
            if random and factor.weight.device.type != "meta":
                factor.weight.copy_(0.1 * torch.randn(factor.weight.shape))
        self.constrain()

    @property
    def angles(self) -> Tensor:
        """The trained entries of Q, (blocks, b (b - 1) / 2)."""
        weight = self.get_submodule(self._name).weight
        assert isinstance(weight, Tensor)  # nn.Module types attributes as Tensor | Module
        return weight

    def turned(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Return x (R - I), in `dtype`, with the blocks of a dropout left as they are."""
        change = rotations_less_identity(self.angles, self.terms)
        if self.training and self.dropout and len(change) > 1:
            mask = dropout(change.new_ones(len(change), 1, 1), self.dropout, shared=True)
            change = change * (mask != 0)
        return rotate_blocks(x.to(dtype), change.to(dtype))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        with without_autocast(y.device.type):
            return y + self.turned(y, y.dtype)

    @torch.no_grad()
    def constrain(self) -> None:
        """Shrink each Q to the bound, if there is one (COFT); HF peft does so before each pass."""
        if self.eps is None or self.angles.device.type == "meta":
            return
        self.angles.copy_(within_bound(self.angles, self.eps))


class SliceRotation(Rotation):
    """A rotation of the input of one role of a fused projection, which the other roles do not see.

    y + W (x R - x), with the frozen rows W of the role.
    """

    exclusive = True  # a merge multiplies the role's whole weight

    def __init__(self, base: BaseLinear, block_size: int, **options: object) -> None:
        super().__init__(base.in_features, block_size, device=base.device, **options)  # type: ignore[arg-type]
        self.base = base

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        assert self.base.rows is not None  # a whole projection has its input rotated
        with without_autocast(y.device.type):
            return self.base.rows.add(y, F.linear(self.turned(x, y.dtype), self.base.weight_in_pass().to(y.dtype)))


def rotated_columns(weight: Tensor, angles: Tensor, terms: int | None) -> Tensor:
    """Return the weight (d_out, d_in) that gives for x what this one gives for x R: W R^T."""
    blocks = rotations_less_identity(angles.to(weight), terms)
    return weight + rotate_blocks(weight, blocks.transpose(1, 2))


def rotated_table(table: Tensor, angles: Tensor, terms: int | None) -> Tensor:
    """Return the table (rows, width) with its rows rotated."""
    return table + rotate_blocks(table, rotations_less_identity(angles.to(table), terms))
