"""LoRA at a lookup table, and its DoRA variant, as loralib and HF peft have them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftcli.layers.base_table import BaseTable
from peftcli.layers.parts.lora import lowrank_delta
from peftcli.layers.parts.lora_init import Initialiser, embedding_init, fill_
from peftcli.layers.site import Part, Scale


class EmbeddingLoraDelta(Part):
    """LoRA of a lookup table W: (vocab, d): adds s B A[:, ids], times the table's own factor where it has one (Gemma).

    Args:
        table: the embedding.
        rank, scale: as for a projection.
        init: fills a: (r, vocab) and b: (d, r); by default a zero and b N(0, 1), as loralib and HF peft do.
        magnitude: whether DoRA's magnitude is trained, per feature.
    """

    def __init__(
        self,
        table: BaseTable,
        rank: int,
        scale: Scale,
        *,
        init: Initialiser | None = None,
        magnitude: bool = False,
    ) -> None:
        super().__init__(scale)
        self.table = table
        self.rank = rank
        vocabulary, width, device = table.rows, table.width, table.device
        self.lora_embedding_A = nn.Parameter(torch.empty(rank, vocabulary, dtype=torch.float32, device=device))
        self.lora_embedding_B = nn.Parameter(torch.empty(width, rank, dtype=torch.float32, device=device))
        if magnitude:
            self.lora_magnitude_vector = nn.Parameter(torch.ones(width, device=device))
        self.magnitude = magnitude
        fill_(self.lora_embedding_A, self.lora_embedding_B, init or embedding_init)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        hidden = F.embedding(x, self.lora_embedding_A.T, padding_idx=self.table.padding_idx)
        delta = F.linear(hidden, self.lora_embedding_B) * (self.scale_of(y) * self.table.scale)
        if not self.magnitude:
            return y + delta.to(y.dtype)
        c = self.lora_magnitude_vector / self._weight_norm()
        return (c * (y + delta)).to(y.dtype)

    def low_rank(self) -> tuple[Tensor, Tensor]:
        """Return the factors of the change of the table, (vocab, k) and (k, d)."""
        return self.lora_embedding_A.T, self.lora_embedding_B.T

    def multiplicative(self) -> list[nn.Parameter]:
        """Return the magnitude, if there is one."""
        return [*([self.lora_magnitude_vector] if self.magnitude else []), *super().multiplicative()]

    def learnt_magnitude(self) -> Tensor | None:
        """Return the magnitude, (d,), or None without one."""
        return self.lora_magnitude_vector if self.magnitude else None

    def delta(self) -> Tensor:
        """Return the change of the table, (vocab, d), float32, before the table's own factor."""
        return lowrank_delta(self.lora_embedding_A, self.lora_embedding_B, float(self.scale)).T

    @torch.no_grad()
    def _weight_norm(self) -> Tensor:
        norm: Tensor = torch.linalg.vector_norm(self.table.weight() + self.delta(), dim=0)
        return norm

    @torch.no_grad()
    def start_from_base(self) -> None:
        """Set the magnitudes, if any, to the norms of the table's columns as they are."""
        if self.magnitude:
            self.lora_magnitude_vector.copy_(self._weight_norm())
