"""DoRA at one projection (Liu et al. 2024, 2402.09353): a low-rank change of direction, and a trained magnitude.

y = m / |W + s B A| * (W + s B A) x + b, with one magnitude m and one norm for each output feature.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftcli.layers.base_linear import BaseLinear
from peftcli.layers.dropout import dropout as drop
from peftcli.layers.parts.lora import LoraDelta
from peftcli.layers.parts.lowrank import lowrank_add
from peftcli.layers.parts.magnitude import MagnitudePart, rescaling
from peftcli.layers.site import Scale


class DoraDelta(MagnitudePart, LoraDelta):
    """DoRA: rescales every output feature of W + s B A to a trained magnitude.

    With dropout, the official code's split: W x + (c - 1) W drop(x) + c s B A drop(x), c = m / |W + s B A|.
    """

    def __init__(self, base: BaseLinear, rank: int, scale: Scale, **options: Any) -> None:
        super().__init__(base, rank, scale, **options)
        self.lora_magnitude_vector = nn.Parameter(torch.ones(base.out_features, device=base.device))

    def gate_width(self) -> int | None:
        """Return None: DoRA's norm is that of a constant change."""
        return None

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        c = rescaling(self.lora_magnitude_vector, self.norm()).to(y.dtype)
        dropout = self.dropout if self.training else 0.0
        bias = self.base.bias()
        own = y if self.rows is None else self.rows.take(y)
        if dropout:
            x_dropped = drop(x, dropout)
            plain = F.linear(x_dropped.to(y.dtype), self.base.weight_in_pass().to(y.dtype))
        else:
            x_dropped = x
            plain = own if bias is None else own - bias.to(y.dtype)
        product = lowrank_add(
            torch.zeros_like(plain), x_dropped, self.lora_A.weight, self.lora_B.weight, self.scale_of(x)
        )
        change = (c - 1) * plain + c * product
        return y + change if self.rows is None else self.rows.add(y, change)

    def computed_norm(self, *_weights: Any) -> Tensor:
        """Return |W + s B A| per output feature, (d_out,), float32."""
        norm: Tensor = torch.linalg.vector_norm(self.base.weight() + self.delta(), dim=1)
        return norm

    def start_from_base(self) -> None:
        """Set the magnitudes to the norms of the weight as it is."""
        self.start_from_weights()

    def learnt_magnitude(self) -> Tensor:
        """Return the magnitude, (d_out,)."""
        return self.lora_magnitude_vector
