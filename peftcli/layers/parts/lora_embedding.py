"""LoRA at a lookup table, and its DoRA variant, as loralib and HF peft have them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftcli.layers.base_table import BaseTable
from peftcli.layers.parts.lora import lowrank_delta
from peftcli.layers.parts.lora_init import Initialiser, embedding_init, fill_
from peftcli.layers.parts.magnitude import MagnitudePart, rescaling
from peftcli.layers.site import Part, Scale


class EmbeddingLoraDelta(Part):
    """LoRA of a lookup table W: (vocab, d): adds s B A[:, ids], times the table's own factor where it has one (Gemma).

    Args:
        table: the embedding.
        rank, scale: as for a projection.
        init: fills a: (r, vocab) and b: (d, r); by default a zero and b N(0, 1), as loralib and HF peft do.
    """

    def __init__(self, table: BaseTable, rank: int, scale: Scale, *, init: Initialiser | None = None) -> None:
        super().__init__(scale)
        self.table = table
        self.rank = rank
        vocabulary, width, device = table.rows, table.width, table.device
        self.lora_embedding_A = nn.Parameter(torch.empty(rank, vocabulary, dtype=torch.float32, device=device))
        self.lora_embedding_B = nn.Parameter(torch.empty(width, rank, dtype=torch.float32, device=device))
        fill_(self.lora_embedding_A, self.lora_embedding_B, init or embedding_init)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return y + self._looked_up(x, y).to(y.dtype)

    def _looked_up(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the change for the ids x, (..., d), times the table's own factor."""
        hidden = F.embedding(x, self.lora_embedding_A.T, padding_idx=self.table.padding_idx)
        return F.linear(hidden, self.lora_embedding_B) * (self.scale_of(y) * self.table.scale)

    def low_rank(self) -> tuple[Tensor, Tensor]:
        """Return the factors of the change of the table, (vocab, k) and (k, d)."""
        return self.lora_embedding_A.T, self.lora_embedding_B.T

    def delta(self) -> Tensor:
        """Return the change of the table, (vocab, d), float32, before the table's own factor."""
        return lowrank_delta(self.lora_embedding_A, self.lora_embedding_B, float(self.scale)).T


class EmbeddingDoraDelta(MagnitudePart, EmbeddingLoraDelta):
    """DoRA of a lookup table: rescales every column of W + s (B A)^T to a trained magnitude, (d,).

    Takes what `EmbeddingLoraDelta` takes.
    """

    def __init__(self, table: BaseTable, rank: int, scale: Scale, *, init: Initialiser | None = None) -> None:
        super().__init__(table, rank, scale, init=init)
        self.lora_magnitude_vector = nn.Parameter(torch.ones(table.width, device=table.device))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        c = rescaling(self.lora_magnitude_vector, self.norm())
        return (c * (y + self._looked_up(x, y))).to(y.dtype)

    def computed_norm(self, *_weights: Any) -> Tensor:
        """Return the norms of the changed table's columns, (d,), float32."""
        norm: Tensor = torch.linalg.vector_norm(self.table.weight() + self.delta(), dim=0)
        return norm

    def start_from_base(self) -> None:
        """Set the magnitudes to the norms of the table's columns as they are."""
        self.start_from_weights()

    def learnt_magnitude(self) -> Tensor:
        """Return the magnitude, (d,)."""
        return self.lora_magnitude_vector
