"""Attention within the documents of a row, computed one document at a time.

With a mask that keeps documents apart, torch computes all pairs of positions of the row, and most of them are masked.
Causal attention without a mask, over one document at a time, computes only what is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate

import torch
from torch import Tensor

from peftcli.layers.cpu.attention_call import AttentionCall
from peftcli.layers.row_draws import by_document


class DocumentAttention:
    """Computes the calls of attention whose mask is causal within each document, and nothing else.

    Args:
        lengths: tokens of each document; their sum is the row's length.

    Attributes:
        taken: calls that were computed this way.
        passed: calls over rows of this length that had another mask.
    """

    def __init__(self, lengths: tuple[int, ...]) -> None:
        self.lengths = lengths
        self.taken = self.passed = 0
        self._known: tuple[Tensor, bool] | None = None

    def __call__(self, call: AttentionCall, attention: Callable[[AttentionCall], Tensor]) -> Tensor | None:
        """Return the attention of `call`, or None if it is not of this kind.

        Args:
            attention: computes the call of one document.
        """
        query, mask = call.query, call.attn_mask
        if mask is None or query.dim() != 4 or query.shape[2] != sum(self.lengths):
            return None
        square = call.key.shape[2] == query.shape[2] and query.shape[0] == 1 and mask.numel() == query.shape[2] ** 2
        if not square or mask.dtype != torch.bool or not self._is_plain(mask):
            self.passed += 1
            return None
        self.taken += 1
        parts = call.split(self.lengths)
        return torch.cat([attention(parts[number]) for number in by_document(self.lengths)], 2)

    def _is_plain(self, mask: Tensor) -> bool:
        """Tell whether the mask hides other documents and later positions, and nothing else (a sliding window does)."""
        if self._known is None or self._known[0] is not mask:  # all layers get the same mask
            expected = torch.zeros(mask.shape[-2:], dtype=torch.bool)
            for end, length in zip(accumulate(self.lengths), self.lengths, strict=True):
                expected[end - length : end, end - length : end] = True
            self._known = (mask, torch.equal(mask.reshape(expected.shape), expected.tril_()))
        return self._known[1]
