"""The base of parts whose change of a weight is written out as a matrix at every pass."""

from __future__ import annotations

from abc import abstractmethod

import torch.nn.functional as F
from torch import Tensor

from peftcli.layers.base_linear import BaseLinear
from peftcli.layers.dropout import dropout
from peftcli.layers.site import Part
from peftcli.layers.without_autocast import without_autocast


class WeightDelta(Part):
    """y + D dropout(x), with D: (d_out, d_in) from `delta`.

    Args:
        base: the frozen projection, or the rows of a fused one.
        dropout: of x.
    """

    def __init__(self, base: BaseLinear, dropout: float = 0.0) -> None:
        super().__init__()
        self.base = base
        self.rows = base.rows
        self.dropout = dropout

    @abstractmethod
    def delta(self) -> Tensor:
        """Return D, (d_out, d_in), float32, with gradients to the part's parameters."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        with without_autocast(y.device.type):
            x = dropout(x.to(y.dtype), self.dropout, self.training)
            added = F.linear(x, self.delta().to(y.dtype)) * self.scale_of(x)
            return y + added if self.rows is None else self.rows.add(y, added)
