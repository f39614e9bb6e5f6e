"""Attention over documents in one row, document by document.

Saves time: with a mask that keeps documents apart, torch computes all pairs of positions of the row, most of which
count for nothing. Each document alone is causal attention without a mask.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate

import torch
from torch import Tensor


class DocumentAttention:
    """Computes calls whose mask says just that: causal, and within one document.

    Args:
        lengths: tokens of each document; they fill the row.

    Attributes:
        taken, passed: calls over rows of this length that were, and that could not be, computed this way.
    """

    def __init__(self, lengths: tuple[int, ...]) -> None:
        self.lengths = lengths
        self.taken = self.passed = 0
        self._known: tuple[Tensor, bool] | None = None

    def __call__(
        self,
        attention: Callable[..., Tensor],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor | None:
        """Return what torch's `scaled_dot_product_attention` would, or None where the call is another one.

        Args:
            attention: computes one document, with torch's arguments.
        """
        if attn_mask is None or query.dim() != 4 or query.shape[2] != sum(self.lengths):
            return None
        square = key.shape[2] == query.shape[2] and query.shape[0] == 1 and attn_mask.numel() == query.shape[2] ** 2
        if not square or attn_mask.dtype != torch.bool or not self._is_plain(attn_mask):
            self.passed += 1
            return None
        self.taken += 1
        words = {"dropout_p": dropout_p, "is_causal": True, "scale": scale, "enable_gqa": enable_gqa}
        parts = (torch.split(x, list(self.lengths), 2) for x in (query, key, value))
        return torch.cat([attention(*part, **words) for part in zip(*parts, strict=True)], 2)

    def _is_plain(self, mask: Tensor) -> bool:
        """Whether the mask hides other documents and later positions, and nothing else (a window would)."""
        if self._known is None or self._known[0] is not mask:  # all layers get the same one
            expected = torch.zeros(mask.shape[-2:], dtype=torch.bool)
            for end, length in zip(accumulate(self.lengths), self.lengths, strict=True):
                expected[end - length : end, end - length : end] = True
            self._known = (mask, torch.equal(mask.reshape(expected.shape), expected.tril_()))
        return self._known[1]
