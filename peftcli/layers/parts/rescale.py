"""(IA)3's learned vectors: y * l on a projection's output, or x * l on its input."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from peftcli.layers.base_linear import Slice
from peftcli.layers.site import Part


class Rescale(Part):
    """Multiply features by a vector that starts at one.

    Args:
        features: how many features are scaled (a slice's own).
        side: `output` scales what the host gives, bias included; `input` what it receives.
        slice: which output features of a fused host.
        device: of the parameter; meta while counting.
    """

    def __init__(
        self, features: int, side: Literal["input", "output"], slice: Slice | None, device: torch.device
    ) -> None:
        super().__init__()
        self.slice = slice
        # HF peft's shapes, (out, 1) and (1, in), so that files are the same
        shape = (features, 1) if side == "output" else (1, features)
        self.ia3_l = nn.Parameter(torch.ones(shape, device=device, dtype=torch.float32))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        factor = 1.0 + self.scale_of(x) * (self.ia3_l.flatten() - 1.0) if self._scaled else self.ia3_l.flatten()
        if self.slice is None:
            return (y * factor).to(y.dtype)
        return self.slice.put(y, (self.slice.take(y) * factor).to(y.dtype))

    def multiplicative(self) -> list[nn.Parameter]:
        """Return the vector: at one it does nothing."""
        return [self.ia3_l, *super().multiplicative()]

    @property
    def _scaled(self) -> bool:
        return not (isinstance(self.scale, float) and self.scale == 1.0)
