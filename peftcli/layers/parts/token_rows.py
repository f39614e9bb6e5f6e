"""Trained rows of a vocabulary's table, in place of the frozen ones: at the embeddings, and at a head of logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftcli.layers.base_table import BaseTable
from peftcli.layers.site import Part


class TokenRows(Part):
    """Rows of a table W: (vocab, d) that take the place of those of `ids`, before any other part changes the output.

    They are values, not differences, as in HF peft's `trainable_tokens_delta`: the base's own rows do not matter, so
    that an adapter means the same on a base whose new rows were drawn anew. At an embedding x are token ids and y their
    vectors; at a head of logits x are hidden states and y the logits, of which those of `ids` are computed again.

    Args:
        module: the frozen embedding or linear layer.
        ids: numbers of the rows, ascending, each once.
        tied: the part at another module with the same weight, whose rows these are; None for rows of its own.
    """

    stage = -1

    def __init__(self, module: nn.Module, ids: Sequence[int], tied: TokenRows | None = None) -> None:
        super().__init__()
        self.table = BaseTable(module)
        self.looks_up = isinstance(module, nn.Embedding)
        device = self.table.device
        self.register_buffer("ids", torch.tensor(ids, dtype=torch.long, device=device), persistent=False)
        self.ids: Tensor
        self._tied = [tied] if tied is not None else []  # in a list: the module is registered where its rows are
        if tied is None:
            empty = torch.empty(len(ids), self.table.width, dtype=torch.float32, device=device)
            self.trainable_tokens_delta = nn.Parameter(empty)

    @property
    def rows(self) -> Tensor:
        """The rows, (number of ids, d), float32."""
        return self._tied[0].rows if self._tied else self.trainable_tokens_delta

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self._looked_up(x, y) if self.looks_up else self._logits(x, y)

    def _looked_up(self, x: Tensor, y: Tensor) -> Tensor:
        place = torch.searchsorted(self.ids, x).clamp(max=len(self.ids) - 1)
        found = self.ids[place] == x
        own = F.embedding(place, self.rows) * self.table.scale
        return torch.where(found.unsqueeze(-1), own.to(y.dtype), y)

    def _logits(self, x: Tensor, y: Tensor) -> Tensor:
        bias = self.table.module.bias
        offset = bias[self.ids].to(x.dtype) if isinstance(bias, Tensor) else None
        own = F.linear(x, self.rows.to(x.dtype), offset)
        return y.index_copy(-1, self.ids, own.to(y.dtype))

    @torch.no_grad()
    def start_from_base(self) -> None:
        """Start from the table's own rows."""
        weight = self.table.weight()  # of every process that has a share of it
        if not self._tied:
            self.trainable_tokens_delta.copy_(weight[self.ids])

    def adapter_tensors(self) -> dict[str, Tensor]:
        """Return the rows; a tied part has none of its own."""
        return {} if self._tied else {"trainable_tokens_delta": self.trainable_tokens_delta}
