"""(IA)3 of experts that are 3-D parameters: a vector for each expert, l_e * (W_e x + b_e), or W_e (l_e * x)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from peftcli.layers.base_linear import Slice
from peftcli.layers.expert_parts.expert_part import Entering, ExpertPart, ExpertsView, Leaving
from peftcli.layers.part_device import device_beside


class ExpertsRescale(ExpertPart):
    """Multiply features of each expert by a vector that starts at one.

    Args:
        base: the experts.
        features: how many features of one expert are scaled (a slice's own).
        side: `output` scales what a projection gives, bias included; `input` what it receives.
        numbers: of the experts that are changed.
        rows: the output features, if the parameter is fused and only a role of it is changed.
    """

    def __init__(
        self,
        base: ExpertsView,
        features: int,
        side: Literal["input", "output"],
        numbers: Sequence[int],
        rows: Slice | None,
    ) -> None:
        super().__init__(base, numbers, rows)
        self.side = side
        device = device_beside(base.host.get_parameter(base.parameter))
        # for each expert the shape that `Rescale` has for one projection
        shape = (len(numbers), features, 1) if side == "output" else (len(numbers), 1, features)
        self.ia3_l = nn.Parameter(torch.ones(shape, device=device, dtype=torch.float32))

    def entering(self) -> Entering | None:
        """Return what scales each expert's rows, where inputs are scaled."""
        if self.side == "output":
            return None
        factors = self.ia3_l.flatten(1).unbind(0)

        def rescale(expert: int, x: Tensor) -> Tensor:
            position = self.positions.get(expert)
            return x if position is None else (x * factors[position]).to(x.dtype)

        return rescale

    def leaving(self, weights: Sequence[Tensor], biases: Sequence[Tensor] | None) -> Leaving | None:
        """Return what scales each expert's outputs, where outputs are scaled."""
        if self.side == "input":
            return None
        factors = self.ia3_l.flatten(1).unbind(0)

        def rescale(expert: int, _x: Tensor, y: Tensor) -> Tensor:
            position = self.positions.get(expert)
            if position is None:
                return y
            factor = factors[position]
            if self.rows is None:
                return (y * factor).to(y.dtype)
            return self.rows.put(y, (self.rows.take(y) * factor).to(y.dtype))

        return rescale

    def multiplicative(self) -> list[nn.Parameter]:
        """Return the vectors: at one they do nothing."""
        return [self.ia3_l, *super().multiplicative()]
