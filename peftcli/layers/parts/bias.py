"""Biases trained beside the base: of some output features of a fused projection, or of a quantised layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from peftcli.layers.base_linear import BaseLinear, Slice
from peftcli.layers.site import Part


class BiasDelta(Part):
    """y + bias_delta on a slice of y; a whole module's bias is trained in place instead.

    Args:
        features: width of the slice.
        slice: which output features of the host.
        device: of the parameter; meta while counting.
    """

    def __init__(self, features: int, slice: Slice, device: torch.device) -> None:
        super().__init__()
        self.slice = slice
        # float32 whatever the base's type: bf16 would lose most steps of size learning_rate
        self.bias_delta = nn.Parameter(torch.zeros(features, device=device, dtype=torch.float32))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.slice.add(y, (self.scale_of(x) * self.bias_delta).to(y.dtype))


class BiasBeside(Part):
    """y + (bias - the host's own bias): a bias trained beside a 4- or 8-bit layer.

    bitsandbytes converts a layer's own bias to the input's dtype at every call, so that training it in place would lose
    the float32 values that the optimizer moves. The tensor that is saved is the whole bias, as it is for other layers.

    Args:
        base: the layer; its bias stays frozen.
    """

    def __init__(self, base: BaseLinear) -> None:
        super().__init__()
        self.base = base
        self.bias = nn.Parameter(torch.zeros(self._own().shape, dtype=torch.float32, device=base.device))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return y + (self.scale_of(x) * (self.bias - self._own().float())).to(y.dtype)

    @torch.no_grad()
    def start_from_base(self) -> None:
        """Start from the layer's bias."""
        self.bias.copy_(self._own())

    def _own(self) -> Tensor:
        own = self.base.bias()
        if own is None:
            raise TypeError("this layer has no bias")
        return own.detach()
