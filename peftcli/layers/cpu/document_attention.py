"""Attention within the documents of a row, computed one document at a time.

With a mask that keeps documents apart, torch computes all pairs of positions of the row, and most of them are masked.
Causal attention without a mask, over one document at a time, computes only what is needed.

A document may continue another one: its first tokens are those of the document before it, and are computed there.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate

import torch
from torch import Tensor

from peftcli.layers.cpu.attention_call import AttentionCall
from peftcli.layers.joined_documents import Documents
from peftcli.layers.row_draws import by_document


class DocumentAttention:
    """Computes the calls of attention whose mask is causal within each document, and nothing else.

    The mask that a model makes of positions knows nothing of a document that continues another: it is computed here, or
    not at all.

    Args:
        documents: of the row.

    Attributes:
        taken: calls that were computed this way.
        passed: calls over rows of this length that had another mask.
    """

    def __init__(self, documents: Documents) -> None:
        self.documents = documents
        self.taken = self.passed = 0
        self._known: tuple[Tensor, bool] | None = None

    def __call__(self, call: AttentionCall, attention: Callable[[AttentionCall], Tensor]) -> Tensor | None:
        """Return the attention of `call`, or None if it is not of this kind.

        Args:
            attention: computes the call of one document.
        """
        query, mask, lengths = call.query, call.attn_mask, self.documents.lengths
        if mask is None or query.dim() != 4 or query.shape[2] != sum(lengths):
            self._leave(call)
            return None
        square = call.key.shape[2] == query.shape[2] and query.shape[0] == 1 and mask.numel() == query.shape[2] ** 2
        if not square or mask.dtype != torch.bool or not self._is_plain(mask):
            self.passed += 1
            self._leave(call)
            return None
        self.taken += 1
        parts = call.split(lengths)
        whole = parts[0]
        for number, before in enumerate(self.documents.continued):
            if before:
                parts[number] = parts[number].behind(whole, before)
            else:
                whole = parts[number]
        return torch.cat([attention(parts[number]) for number in by_document(lengths)], 2)

    def _leave(self, call: AttentionCall) -> None:
        """Leave a call to the model's own mask.

        Raises:
            ValueError: that mask would hide what a document continues.
        """
        if self.documents.share and call.query.shape[-2] == sum(self.documents.lengths):
            raise ValueError("attention is not causal within documents: training.fast_paths.shared_prompts must be off")

    def _is_plain(self, mask: Tensor) -> bool:
        """Tell whether the mask hides other documents and later positions, and nothing else (a sliding window does)."""
        if self._known is None or self._known[0] is not mask:  # all layers get the same mask
            expected = torch.zeros(mask.shape[-2:], dtype=torch.bool)
            lengths = self.documents.lengths
            for end, length in zip(accumulate(lengths), lengths, strict=True):
                expected[end - length : end, end - length : end] = True
            self._known = (mask, torch.equal(mask.reshape(expected.shape), expected.tril_()))
        return self._known[1]
