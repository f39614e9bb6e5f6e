"""LoRA of experts that are 3-D parameters: s B_e A_e of each expert e, for the rows that a router sends to it.

The factors of all experts lie in two matrices, as in HF peft's ParamWrapper: A is (E r, in), the rows of one expert
together; B is (out, r E), its columns counted rank by rank.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from peftcli.layers.base_linear import Slice
from peftcli.layers.expert_parts.expert_part import ExpertPart, ExpertsView, Leaving
from peftcli.layers.part_device import device_beside
from peftcli.layers.parts.lora import Factor
from peftcli.layers.parts.lora_init import Initialiser, fill_
from peftcli.layers.parts.lowrank import lowrank_add


class ExpertsDelta(ExpertPart):
    """Low-rank changes of the experts that one 3-D parameter holds.

    No change of a whole weight is ever made: s B_e A_e x is added to the rows of one expert.

    Args:
        base: the experts.
        widths: in and out features of one expert, of the slice if there is one.
        numbers: of the experts that are changed.
        rank: r, of every expert.
        scale: s.
        rows: the output features, if the parameter is fused and only a role of it is changed.
        dropout: of the low-rank branch's input.
        init: fills one expert's factors; skipped on the meta device.
        freeze_a: train B alone (LoRA-FA).
    """

    def __init__(
        self,
        base: ExpertsView,
        widths: tuple[int, int],
        numbers: Sequence[int],
        rank: int,
        scale: float,
        *,
        rows: Slice | None,
        dropout: float,
        init: Initialiser,
        freeze_a: bool,
    ) -> None:
        super().__init__(base, numbers, rows, scale)
        self.rank, self.dropout = rank, dropout
        device, count = device_beside(base.host.get_parameter(base.parameter)), len(numbers)
        self.lora_A = Factor(count * rank, widths[0], device)
        self.lora_B = Factor(widths[1], rank * count, device)
        self.lora_A.weight.requires_grad_(not freeze_a)
        for a, b in zip(*expert_factors(self.lora_A.weight.detach(), self.lora_B.weight.detach(), rank), strict=True):
            fill_(a, b, init)

    def factors(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Return every changed expert's A, (r, in), and B, (out, r); ask once a pass: autograd joins them at once."""
        return expert_factors(self.lora_A.weight, self.lora_B.weight, self.rank)

    def leaving(self, weights: Sequence[Tensor], biases: Sequence[Tensor] | None) -> Leaving:
        """Return what adds the low-rank product of each expert that is changed."""
        every_a, every_b = self.factors()
        scale, dropout = float(self.scale), self.dropout if self.training else 0.0

        def add(expert: int, x: Tensor, y: Tensor) -> Tensor:
            position = self.positions.get(expert)
            if position is None:
                return y
            return lowrank_add(y, x, every_a[position], every_b[position], scale, self.rows, dropout)

        return add


def expert_factors(a: Tensor, b: Tensor, rank: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return the factors of every expert: A of shape (r, in), and B of shape (out, r).

    Args:
        a: (E r, in).
        b: (out, r E).
        rank: r.
    """
    count = a.shape[0] // rank
    every_a = a.view(count, rank, a.shape[1]).unbind(0)
    every_b = b.view(b.shape[0], rank, count).unbind(2)
    return every_a, every_b


@torch.no_grad()
def joined_factors(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return A (E r, in) and B (out, r E) of every expert's A and B: what `expert_factors` takes apart."""
    a = torch.cat([a for a, _ in pairs])
    b = torch.stack([b for _, b in pairs], dim=2).flatten(1)
    return a, b
