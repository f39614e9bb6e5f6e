"""The arguments of torch's `scaled_dot_product_attention` as one record."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class AttentionCall:
    """A call of torch's attention: softmax(scale * query key^T + mask) value.

    Args:
        query: (batch, heads, length, d).
        key: (batch, groups, keys, d); `groups` divides `heads` where `enable_gqa`, else it is `heads`.
        value: (batch, groups, keys, d_value).
        attn_mask: broadcastable to (batch, heads, length, keys): bool (True attends) or added.
        dropout_p: probability with which a probability is zeroed.
        scale: of the scores; None is d ** -0.5.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    attn_mask: Tensor | None = None
    dropout_p: float = 0.0
    is_causal: bool = False
    scale: float | None = None
    enable_gqa: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which torch's attention computes: autocast's, if it is on."""
        if torch.is_autocast_enabled("cpu") and self.query.dtype != torch.float64:
            return torch.get_autocast_dtype("cpu")
        return self.query.dtype

    def split(self, lengths: tuple[int, ...]) -> list[AttentionCall]:
        """Return one causal call without a mask for each document, given the documents' lengths."""
        parts = (torch.split(x, list(lengths), 2) for x in (self.query, self.key, self.value))
        return [
            replace(self, query=query, key=key, value=value, attn_mask=None, is_causal=True)
            for query, key, value in zip(*parts, strict=True)
        ]

    def by_torch(self) -> Tensor:
        """Return the result of torch's function, (batch, heads, length, d_value)."""
        return F.scaled_dot_product_attention(
            self.query,
            self.key,
            self.value,
            self.attn_mask,
            self.dropout_p,
            self.is_causal,
            scale=self.scale,
            enable_gqa=self.enable_gqa,
        )
