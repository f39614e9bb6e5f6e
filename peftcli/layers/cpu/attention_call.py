"""The arguments of torch's `scaled_dot_product_attention` as one record."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from peftcli.layers.dropout import dropout


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

    def behind(self, other: AttentionCall, tokens: int) -> AttentionCall:
        """Return the call with the first `tokens` keys and values of another before its own: its queries attend to all
        of these, and causally to their own.
        """
        key, value = (
            torch.cat((one[:, :, :tokens], own), 2) for one, own in ((other.key, self.key), (other.value, self.value))
        )
        own = self.query.shape[2]
        mask = torch.ones(own, tokens + own, dtype=torch.bool, device=key.device).tril_(tokens)
        return replace(self, key=key, value=value, attn_mask=mask, is_causal=False)

    def with_drawn_dropout(self) -> Tensor:
        """Return the result by plain operations, the dropout of the probabilities drawn by rows.

        Torch's function computes attention with dropout on a CPU in the same way.
        """
        query, key, value = (x.to(self.dtype) for x in (self.query, self.key, self.value))
        if self.enable_gqa and key.shape[1] != query.shape[1]:
            key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
        scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if self.scale is None else self.scale)
        mask = self.attn_mask
        if self.is_causal:
            mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        if mask is not None and mask.dtype == torch.bool:
            scores = scores.masked_fill(~mask, -torch.inf)
        elif mask is not None:
            scores = scores + mask
        weights = torch.softmax(scores, -1, dtype=torch.float32).to(self.dtype)
        if mask is not None:
            weights = weights.nan_to_num(0.0)  # positions that attend to nothing
        return dropout(weights, self.dropout_p) @ value

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
