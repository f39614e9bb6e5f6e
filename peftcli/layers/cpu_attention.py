"""Causal attention over short sequences in bfloat16 on a CPU, by three products and a softmax.

Saves time: torch's own CPU kernel for `scaled_dot_product_attention` takes about three times as long there, forward and
backward, up to some 500 positions (it is the faster one in float32, and for longer rows). Costs the probabilities: two
bytes for each head and pair of positions, which `LONGEST` bounds. Anything else goes to torch as before: other devices
and dtypes, masks, dropout, rows that are longer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

LONGEST = 512
"""Positions up to which the products win; measured with 9 heads of 64 on a machine with bfloat16 products."""


class ShortAttention(TorchFunctionMode):
    """While active, `scaled_dot_product_attention` takes this module's path where it fits.

    Leaving it out is the switch: without the mode every call is torch's own.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run `func`, or the short path in its place."""
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and len(args) == 3 and _fits(*args, **kwargs):
            return short_attention(*args, scale=kwargs.get("scale"))
        return func(*args, **kwargs)


def _fits(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> bool:
    if attn_mask is not None or dropout_p or not is_causal or query.device.type != "cpu" or query.dim() != 4:
        return False
    length = query.shape[2]
    heads_fit = key.shape[1] == value.shape[1] and (enable_gqa or key.shape[1] == query.shape[1])
    return _dtype(query) == torch.bfloat16 and heads_fit and key.shape[2] == length <= LONGEST


def _dtype(x: Tensor) -> torch.dtype:
    """Return the dtype in which torch's attention would compute here."""
    if torch.is_autocast_enabled("cpu") and x.dtype != torch.float64:
        return torch.get_autocast_dtype("cpu")
    return x.dtype


def short_attention(query: Tensor, key: Tensor, value: Tensor, *, scale: float | None = None) -> Tensor:
    """Return causal attention, each group of query heads on its key and value head.

    Args:
        query: (batch, heads, length, d).
        key: (batch, groups, length, d); `groups` divides `heads`.
        value: (batch, groups, length, d_value).
        scale: of the scores; None is d ** -0.5.

    Returns:
        (batch, heads, length, d_value) in the dtype that autocast chooses, else in the query's.
    """
    batch, heads, length, width = query.shape
    dtype, groups = _dtype(query), key.shape[1]
    query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    # the heads of a group stand below each other: one product for all of them, and no repeated keys
    stacked = query.reshape(batch, groups, heads // groups * length, width)
    with torch.autocast("cpu", enabled=False):
        out: Tensor = _CausalAttention.apply(stacked, key, value, width**-0.5 if scale is None else scale)  # type: ignore[no-untyped-call]  # torch's
    return out.view(batch, heads, length, value.shape[-1])


class _CausalAttention(torch.autograd.Function):
    """Keeps query, key, value and the probabilities."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        length = key.shape[2]
        scores = (query * scale) @ key.transpose(-1, -2)
        later = torch.ones(length, length, dtype=torch.bool).triu_(1)
        scores.view(*scores.shape[:2], -1, length, length).masked_fill_(later, -torch.inf)
        weights = torch.softmax(scores, -1)  # sums in float32 inside
        ctx.save_for_backward(query, key, value, weights)
        ctx.scale = scale
        return weights @ value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value, weights = ctx.saved_tensors
        grad_value = weights.transpose(-1, -2) @ grad
        grad_weights = grad @ value.transpose(-1, -2)
        grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype).mul_(ctx.scale)
        return grad_scores @ key, grad_scores.transpose(-1, -2) @ query, grad_value, None
