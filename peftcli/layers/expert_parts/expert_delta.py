"""LoRA of experts that are 3-D parameters: s B_e A_e of each expert e, for the rows that a router sends to it.

The factors of all experts lie in two matrices, as in HF peft's ParamWrapper: A is (E r, in), the rows of one expert
together; B is (out, r E), its columns counted rank by rank.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from peftcli.layers.base_linear import Slice
from peftcli.layers.part_device import device_beside
from peftcli.layers.parts.lora import Factor
from peftcli.layers.parts.lora_init import Initialiser, fill_
from peftcli.layers.parts.lowrank import lowrank_add
from peftcli.layers.site import Part


class ExpertsDelta(Part):
    """Low-rank changes of the experts that one 3-D parameter holds.

    No change of a whole weight is ever made: `at` adds s B_e A_e x to the rows of one expert.

    Args:
        weight: the parameter.
        widths: in and out features of one expert, of the slice if there is one.
        experts: the numbers of those that are changed.
        rank: r, of every expert.
        scale: s.
        parameter: the parameter's name in its module.
        rows: the output features, if the parameter is fused and only a role of it is changed.
        dropout: of the low-rank branch's input.
        init: fills one expert's factors; skipped on the meta device.
        freeze_a: train B alone (LoRA-FA).
    """

    def __init__(
        self,
        weight: Tensor,
        widths: tuple[int, int],
        experts: Sequence[int],
        rank: int,
        scale: float,
        *,
        parameter: str,
        rows: Slice | None,
        dropout: float,
        init: Initialiser,
        freeze_a: bool,
    ) -> None:
        super().__init__(scale)
        self.parameter, self.rank, self.rows, self.dropout = parameter, rank, rows, dropout
        self.positions = {expert: position for position, expert in enumerate(experts)}
        device, count = device_beside(weight), len(experts)
        self.lora_A = Factor(count * rank, widths[0], device)
        self.lora_B = Factor(widths[1], rank * count, device)
        self.lora_A.weight.requires_grad_(not freeze_a)
        for a, b in zip(*expert_factors(self.lora_A.weight.detach(), self.lora_B.weight.detach(), rank), strict=True):
            fill_(a, b, init)

    def factors(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Return every changed expert's A, (r, in), and B, (out, r); ask once a pass: autograd joins them at once."""
        return expert_factors(self.lora_A.weight, self.lora_B.weight, self.rank)

    def at(self, x: Tensor, y: Tensor, pair: tuple[Tensor, Tensor]) -> Tensor:
        """Return y with one expert's change added.

        Args:
            x: the rows that the expert gets, (rows, in).
            y: what its projection made of them, (rows, out); its memory is reused.
            pair: the expert's A and B.
        """
        return lowrank_add(y, x, *pair, float(self.scale), self.rows, self.dropout if self.training else 0.0)


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
