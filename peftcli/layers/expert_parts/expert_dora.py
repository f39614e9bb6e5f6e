"""DoRA of experts that are 3-D parameters (Liu et al. 2024, 2402.09353): each expert's matrix by itself.

y = m_e / |W_e + s B_e A_e| * (W_e + s B_e A_e) x + b_e, with one magnitude and one norm for each output feature of
each expert. The norms need W_e + s B_e A_e, one expert at a time, in every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftcli.layers.base_linear import Slice
from peftcli.layers.dropout import dropout as drop
from peftcli.layers.expert_parts.expert_delta import ExpertsDelta
from peftcli.layers.expert_parts.expert_part import Leaving
from peftcli.layers.parts.lora import lowrank_delta
from peftcli.layers.parts.lowrank import lowrank_add
from peftcli.layers.parts.magnitude import MagnitudePart, rescaling


class ExpertsDora(MagnitudePart, ExpertsDelta):
    """DoRA: rescales every output feature of W_e + s B_e A_e to a trained magnitude.

    Takes what `ExpertsDelta` takes.

    Attributes:
        lora_magnitude_vector: (experts, out), a row for each expert that is changed.
    """

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        b = self.lora_B.weight
        self.lora_magnitude_vector = nn.Parameter(torch.ones(len(self.positions), len(b), device=b.device))

    def leaving(self, weights: Sequence[Tensor], biases: Sequence[Tensor] | None) -> Leaving:
        """Return what gives each expert that is changed its direction and its magnitudes."""
        every_a, every_b = self.factors()
        factors = rescaling(self.lora_magnitude_vector, self.norm(weights)).unbind(0)
        scale, dropout = float(self.scale), self.dropout if self.training else 0.0

        def change(expert: int, x: Tensor, y: Tensor) -> Tensor:
            position = self.positions.get(expert)
            if position is None:
                return y
            c = factors[position].to(y.dtype)
            dropped = drop(x, dropout) if dropout else x
            if dropout:  # the official code's split: W x + (c - 1) W drop(x) + c s B A drop(x)
                plain = F.linear(dropped.to(y.dtype), own_rows(weights[expert], self.rows).to(y.dtype))
            else:
                plain = y if self.rows is None else self.rows.take(y)
                if biases is not None:
                    bias = biases[expert] if self.rows is None else self.rows.take(biases[expert])
                    plain = plain - bias.to(y.dtype)
            product = lowrank_add(torch.zeros_like(plain), dropped, every_a[position], every_b[position], scale)
            added = (c - 1) * plain + c * product
            return y + added if self.rows is None else self.rows.add(y, added)

        return change

    def computed_norm(self, *weights: Sequence[Tensor]) -> Tensor:
        """Return |W_e + s B_e A_e| per output feature, (experts, out), float32.

        Args:
            weights: `ExpertsView.weights()` of this pass.
        """
        (every,) = weights
        pairs = zip(self.positions, *self.factors(), strict=True)
        return torch.stack([self._norm_of(every[expert], a, b) for expert, a, b in pairs])

    def _norm_of(self, weight: Tensor, a: Tensor, b: Tensor) -> Tensor:
        changed = own_rows(weight, self.rows).to(a.device).float() + lowrank_delta(a, b, float(self.scale))
        norm: Tensor = torch.linalg.vector_norm(changed, dim=1)
        return norm

    def start_from_base(self) -> None:
        """Set the magnitudes to the norms of the weights as they are."""
        self.start_from_weights(self.base.weights())


def own_rows(weight: Tensor, rows: Slice | None) -> Tensor:
    """Return the rows of a weight (out, in) that belong to a role of it."""
    return weight if rows is None else rows.take(weight.T).T
