"""HiRA's layers: the frozen weight times a trained low-rank product, element by element (Huang et al. 2025)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftcli.layers.base_linear import BaseLinear
from peftcli.layers.base_table import BaseTable
from peftcli.layers.parts.lora_init import Initialiser, embedding_init, fill_, kaiming_init
from peftcli.layers.site import Part
from peftcli.layers.weight_changes.weight_delta import WeightDelta
from peftcli.layers.without_autocast import without_autocast


class HadamardDelta(WeightDelta):
    """y + (W * B A) dropout(x), where * multiplies element by element: of a rank up to that of W times r.

    Args:
        base: the frozen projection, or the rows of a fused one.
        rank: r.
        dropout: of x.
        init: fills A: (r, d_in) and B: (d_out, r).
    """

    exclusive = True  # the product is with the weight as it was loaded, not with what another part makes of it

    def __init__(self, base: BaseLinear, rank: int, *, dropout: float = 0.0, init: Initialiser | None = None) -> None:
        super().__init__(base, dropout)
        self.hira_A = nn.Parameter(torch.empty(rank, base.in_features, device=base.device))
        self.hira_B = nn.Parameter(torch.empty(base.out_features, rank, device=base.device))
        fill_(self.hira_A, self.hira_B, init or kaiming_init)

    def delta(self) -> Tensor:
        """Return W * B A, (d_out, d_in), float32."""
        return self.base.weight_in_pass() * (self.hira_B @ self.hira_A)


class EmbeddingHadamardDelta(Part):
    """HiRA of a lookup table W: (vocab, d): adds W[ids] * (A^T B^T)[ids], times the table's own factor (Gemma).

    Args:
        table: the embedding.
        rank: r.
        init: fills a: (r, vocab) and b: (d, r); by default a zero and b N(0, 1), as HF peft does.
    """

    exclusive = True

    def __init__(self, table: BaseTable, rank: int, *, init: Initialiser | None = None) -> None:
        super().__init__()
        self.table = table
        self.hira_embedding_A = nn.Parameter(torch.empty(rank, table.rows, device=table.device))
        self.hira_embedding_B = nn.Parameter(torch.empty(table.width, rank, device=table.device))
        fill_(self.hira_embedding_A, self.hira_embedding_B, init or embedding_init)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        with without_autocast(y.device.type):
            hidden = F.embedding(x, self.hira_embedding_A.T, padding_idx=self.table.padding_idx)
            factor = F.linear(hidden, self.hira_embedding_B) * (self.scale_of(y) * self.table.scale)
            return y + (self.table.rows_at(x) * factor).to(y.dtype)
