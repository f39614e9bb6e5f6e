"""Attention on a CPU by matrix products and a softmax, where that is faster than torch's function.

It is faster in two cases. With dropout on the probabilities, torch computes attention in many passes and draws the
masks with `bernoulli_`, which takes twice the time; here they are drawn by rows, too. In causal attention of short rows
in bfloat16, torch's kernel takes about three times as long for up to some 500 positions; it is faster in float32, and
for longer rows. The memory cost is the probabilities: one value for each head and pair of positions, and with dropout
two more bytes. Torch keeps more with dropout, and nothing without it; `LONGEST` limits that case. All other calls are
left to torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from peftcli.layers.cpu.attention_call import AttentionCall
from peftcli.layers.cpu.wide_products import is_widening, product
from peftcli.layers.dropout import scaled_mask
from peftcli.layers.row_draws import Draw, draw_attention

LONGEST = 512
"""Largest number of positions for which the products are faster without dropout; measured with 9 heads of 64, on a CPU
that has bfloat16 instructions."""


def fits(call: AttentionCall) -> bool:
    """Tell whether a call of torch's attention is computed here."""
    query, key, mask = call.query, call.key, call.attn_mask
    if query.device.type != "cpu" or query.dim() != 4 or not query.is_floating_point():
        return False
    if key.shape[1] != call.value.shape[1] or key.shape[0] != query.shape[0]:
        return False
    if key.shape[1] != query.shape[1] and not (call.enable_gqa and query.shape[1] % key.shape[1] == 0):
        return False
    if call.is_causal and (mask is not None or query.shape[2] != key.shape[2]):
        return False
    if mask is not None and (mask.requires_grad or not _broadcasts(mask, query)):
        return False
    if call.dropout_p > 0.0:
        return call.dropout_p < 1.0
    causal = call.is_causal or (mask is not None and mask.dim() == 2)  # 2-D: of a document that continues another
    short = causal and key.shape[2] <= LONGEST
    return short and call.dtype == torch.bfloat16 and not is_widening()


def _broadcasts(mask: Tensor, query: Tensor) -> bool:
    """Tell whether a mask is the same for all heads, so that it can be added to the stacked heads of a group."""
    return mask.dim() == 2 or (mask.dim() == 4 and mask.shape[1] == 1 and mask.shape[2] in (1, query.shape[2]))


def cpu_attention(call: AttentionCall) -> Tensor:
    """Compute a call that `fits`; each group of query heads uses one key and value head.

    Returns:
        (batch, heads, length, d_value) in autocast's dtype if it is on, else in the query's. A position that may attend
        to nothing gets zeros.
    """
    batch, heads, length, width = call.query.shape
    dtype, groups, mask = call.dtype, call.key.shape[1], call.attn_mask
    query, key, value = call.query.to(dtype), call.key.to(dtype), call.value.to(dtype)
    # the heads of a group are stacked as rows: one product computes all of them, without repeating the keys
    stacked = query.reshape(batch, groups, heads // groups * length, width)
    probabilities = (batch, groups, heads // groups, length, key.shape[2])
    drawn = draw_attention(probabilities) if call.dropout_p else None
    scale = width**-0.5 if call.scale is None else call.scale
    hidden = _hidden(mask, length, key.shape[2], call.is_causal)
    added = None if mask is None or mask.dtype == torch.bool else mask.to(dtype)
    with torch.autocast("cpu", enabled=False):
        apply: Callable[..., Tensor] = _Attention.apply  # untyped in torch
        out = apply(stacked, key, value, scale, hidden, added, length, call.dropout_p, drawn)
    return out.view(batch, heads, length, value.shape[-1])


def _hidden(mask: Tensor | None, length: int, keys: int, is_causal: bool) -> Tensor | None:
    """Return which keys a position must not attend to, broadcastable to (batch, groups, heads of one, length, keys)."""
    if is_causal:
        return torch.ones(length, keys, dtype=torch.bool).triu_(1)
    if mask is None or mask.dtype != torch.bool or bool(mask.all()):
        return None
    return ~(mask if mask.dim() == 2 else mask[:, :, None])


class _Attention(torch.autograd.Function):
    """The attention of stacked heads. Keeps query, key, value, the probabilities, and the random bits of dropout."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        hidden: Tensor | None,
        added: Tensor | None,
        length: int,
        rate: float,
        drawn: Draw | None,
    ) -> Tensor:
        scores = product(query * scale, key.transpose(-1, -2))
        by_head = scores.view(*scores.shape[:2], -1, length, scores.shape[-1])
        if hidden is not None:
            by_head.masked_fill_(hidden, -torch.inf)
        if added is not None:
            by_head.add_(added if added.dim() == 2 else added[:, :, None])
        weights = torch.softmax(scores, -1)  # sums in float32 inside
        if (hidden is not None or added is not None) and not bool(torch.isfinite(weights[..., :1]).all()):
            weights = weights.nan_to_num_(0.0)  # positions that attend to nothing
        bits = None if drawn is None else drawn.bits(weights.device).view(weights.shape)
        ctx.save_for_backward(query, key, value, weights, bits)
        ctx.scale, ctx.rate = scale, rate
        dropped = weights if bits is None else scaled_mask(bits, rate, weights.dtype).mul_(weights)
        return product(dropped, value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, weights, bits = ctx.saved_tensors
        mask = None if bits is None else scaled_mask(bits, ctx.rate, weights.dtype)
        grad_weights = product(grad, value.transpose(-1, -2))
        if mask is not None:
            grad_weights.mul_(mask)
        grad_value = product((weights if mask is None else mask.mul_(weights)).transpose(-1, -2), grad)
        grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype).mul_(ctx.scale)
        return product(grad_scores, key), product(grad_scores.transpose(-1, -2), query), grad_value, *[None] * 6
