"""MiSS's layers: one trained block of rows that all shards of the input share (Kang & Yin 2024)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftcli.layers.base_linear import BaseLinear
from peftcli.layers.dropout import dropout as drop
from peftcli.layers.site import Part
from peftcli.layers.weight_changes.weight_delta import WeightDelta
from peftcli.layers.without_autocast import without_autocast


def _started(shape: tuple[int, ...], device: torch.device, random: bool) -> nn.Parameter:
    """Return a parameter of zeros, or of random values drawn on the CPU; nothing is drawn on meta."""
    values = torch.zeros(shape, device=device)
    if random and device.type != "meta":
        drawn = torch.empty(shape)
        nn.init.kaiming_uniform_(drawn, a=math.sqrt(5))
        values = drawn.to(device)
    return nn.Parameter(values)


class BlockSums(Part):
    """y + (sum of the shards of dropout(x)) D: the input is cut into shards of r features, which are summed first.

    Args:
        base: the frozen projection, or the rows of a fused one.
        rank: r, features of a shard; the last one is filled up with zeros.
        columns: trained columns of D: (r, columns), repeated over the outputs; None for all of them.
        dropout: of x.
        random: start from random values, no identity; for tests.
    """

    def __init__(
        self, base: BaseLinear, rank: int, *, columns: int | None = None, dropout: float = 0.0, random: bool = False
    ) -> None:
        super().__init__()
        self.rows, self.dropout = base.rows, dropout
        self.in_features, self.repeats = base.in_features, base.out_features // (columns or base.out_features)
        self.miss_block = _started((rank, columns or base.out_features), base.device, random)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        rank = len(self.miss_block)
        with without_autocast(y.device.type):
            x = drop(F.pad(x.to(y.dtype), (0, -x.shape[-1] % rank)), self.dropout, self.training)
            sums = x.reshape(*x.shape[:-1], -1, rank).sum(-2)
            added = (sums @ self.miss_block.to(y.dtype)).repeat(*[1] * (sums.ndim - 1), self.repeats)
            added = added * self.scale_of(x)
            return y + added if self.rows is None else self.rows.add(y, added)

    def low_rank(self) -> tuple[Tensor, Tensor]:
        """Return D^T, (d_out, r), and the matrix that sums the shards, (r, d_in)."""
        rank = len(self.miss_block)
        sums = torch.eye(rank, device=self.miss_block.device).repeat(1, -(-self.in_features // rank))
        return self.miss_block.T.repeat(self.repeats, 1), sums[:, : self.in_features]


class BlockAffine(WeightDelta):
    """y + (W_ij D_i + D_i) x ("bat"): each block (r, r) of the weight is multiplied by a trained one of its rows.

    Args:
        base: the frozen projection, or the rows of a fused one; r divides both of its sides.
        rank: r.
    """

    exclusive = True  # it multiplies the weight as it was loaded

    def __init__(self, base: BaseLinear, rank: int) -> None:
        super().__init__(base)
        self.miss_block = _started((base.out_features // rank, rank, rank), base.device, random=False)

    def delta(self) -> Tensor:
        """Return the change, (d_out, d_in), float32."""
        return affine_change(self.base.weight_in_pass().to(self.miss_block), self.miss_block)


def affine_change(weight: Tensor, blocks: Tensor) -> Tensor:
    """Return W_ij D_i + D_i for each block (r, r) of a weight (d_out, d_in), with D: (d_out / r, r, r).

    As in HF peft's code: W_ij D multiplies along the inputs of a block, and D_i belongs to the block's rows i.
    """
    rank = blocks.shape[-1]
    d_out, d_in = weight.shape
    cut = weight.reshape(d_out // rank, rank, d_in // rank, rank).permute(2, 0, 1, 3)
    return (cut @ blocks + blocks).permute(1, 2, 0, 3).reshape(d_out, d_in)


def shared_change(block: Tensor, d_out: int, d_in: int) -> Tensor:
    """Return the change (d_out, d_in) of a block (r, columns) that is repeated over inputs and outputs."""
    rank, columns = block.shape
    return block.T.repeat(d_out // columns, -(-d_in // rank))[:, :d_in]
