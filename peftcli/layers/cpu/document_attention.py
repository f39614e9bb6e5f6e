"""Attention over documents in one row, document by document.

Saves time: with a mask that keeps documents apart, torch computes all pairs of positions of the row, most of which
count for nothing. Each document alone is causal attention without a mask.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate

import torch
from torch import Tensor

from peftcli.layers.cpu.attention_call import AttentionCall


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

    def __call__(self, call: AttentionCall, attention: Callable[[AttentionCall], Tensor]) -> Tensor | None:
        """Return the attention of `call`, or None where it is another one.

        Args:
            attention: computes one document.
        """
        query, mask = call.query, call.attn_mask
        if mask is None or query.dim() != 4 or query.shape[2] != sum(self.lengths):
            return None
        square = call.key.shape[2] == query.shape[2] and query.shape[0] == 1 and mask.numel() == query.shape[2] ** 2
        if not square or mask.dtype != torch.bool or not self._is_plain(mask):
            self.passed += 1
            return None
        self.taken += 1
        return torch.cat([attention(part) for part in call.split(self.lengths)], 2)

    def _is_plain(self, mask: Tensor) -> bool:
        """Whether the mask hides other documents and later positions, and nothing else (a window would)."""
        if self._known is None or self._known[0] is not mask:  # all layers get the same one
            expected = torch.zeros(mask.shape[-2:], dtype=torch.bool)
            for end, length in zip(accumulate(self.lengths), self.lengths, strict=True):
                expected[end - length : end, end - length : end] = True
            self._known = (mask, torch.equal(mask.reshape(expected.shape), expected.tril_()))
        return self._known[1]
