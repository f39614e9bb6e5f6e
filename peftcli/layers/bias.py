"""A bias added to some output features of a fused projection (BitFit on one role of it)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from peftcli.layers.base_linear import Slice
from peftcli.layers.site import Part


class BiasDelta(Part):
    """y + bias_delta on a slice of y; a whole module's bias is trained in place instead.

    Args:
        features: width of the slice.
        slice: which output features of the host.
        device: where the parameter lives; meta while counting.
    """

    def __init__(self, features: int, slice: Slice, device: torch.device) -> None:
        super().__init__()
        self.slice = slice
        # float32 whatever the base's type: bf16 would lose most steps of size learning_rate
        self.bias_delta = nn.Parameter(torch.zeros(features, device=device, dtype=torch.float32))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.slice.add(y, (self.scale_of(x) * self.bias_delta).to(y.dtype))
