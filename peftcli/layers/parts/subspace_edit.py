"""LoReFT's intervention: h + R^T (W h + b - R h) at chosen tokens (Wu et al. 2024, 2404.03592, section 3.2)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from peftcli.layers.dropout import dropout as drop
from peftcli.layers.site import Part
from peftcli.layers.without_autocast import without_autocast

Where = Callable[[], Tensor | None]
"""Gives (batch, seq) bool, the tokens to change in the current pass; None for none."""


class SubspaceEdit(Part):
    """Replaces what hidden states are in a trained subspace of `rank` dimensions, at chosen tokens.

    R is computed from the trained `loreft_R`, P: R = L^-1 P with P P^T = L L^T (Cholesky). Its rows are orthonormal and
    span what P's rows span. At the start P's rows are orthonormal, W = R and b = 0: nothing is changed.

    Args:
        width: d, of the hidden states.
        rank: r, at most d; the part has r (2 d + 1) numbers.
        dropout: on the r numbers W h + b - R h.
        where: which tokens to change.
    """

    stage = 1

    def __init__(self, width: int, rank: int, dropout: float, where: Where) -> None:
        super().__init__()
        self.loreft_R = nn.Parameter(nn.init.orthogonal_(torch.empty(rank, width, dtype=torch.float32)))
        # by rows in memory, unlike what the solver gives: moments of an optimizer are loaded in this order
        self.loreft_W = nn.Parameter(self.rotation().detach().clone(memory_format=torch.contiguous_format))
        self.loreft_b = nn.Parameter(torch.zeros(rank, dtype=torch.float32))
        self.dropout = dropout
        self._where = where

    def rotation(self) -> Tensor:
        """Return R: (r, d) with orthonormal rows, float32."""
        raw = self.loreft_R
        with without_autocast(raw.device.type):
            factor = torch.linalg.cholesky_ex(raw @ raw.T).L  # without a check, so that a run that diverges gives NaN
            rows: Tensor = torch.linalg.solve_triangular(factor, raw, upper=False)
        return rows

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return y: (batch, seq, d), changed at the chosen tokens; a gate sees y."""
        where = self._where()
        if where is None:
            return y
        # the last block of a classifier may have computed the first position only
        chosen = where[:, : y.shape[1]].unsqueeze(-1).to(y.device)
        return y + torch.where(chosen, self.scale_of(y) * self.change(y), 0.0)

    def change(self, y: Tensor) -> Tensor:
        """Return R^T (W h + b - R h) for y: (..., d), in its dtype."""
        rotation = self.rotation().to(y.dtype)
        wanted = functional.linear(y, self.loreft_W.to(y.dtype), self.loreft_b.to(y.dtype))
        difference = drop(wanted - functional.linear(y, rotation), self.dropout, self.training)
        return functional.linear(difference, rotation.T)

    def gate_width(self) -> int | None:
        """Return the width of the hidden states."""
        return self.loreft_R.shape[1]

    def multiplicative(self) -> list[nn.Parameter]:
        """Return R and W, too: W = R does nothing, W = 0 would erase the subspace."""
        return [self.loreft_R, self.loreft_W, *super().multiplicative()]
