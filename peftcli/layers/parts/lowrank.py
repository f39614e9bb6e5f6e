"""y + scale * (dropout(x) A^T) B^T, in one autograd node that keeps x and x A^T for the backward pass.

A chain of modules would also keep the product (twice with the scale), the dropped x and its mask, and copies in
float32. Here one `addmm` adds the product into y, with the scale as its alpha; x A^T has only r features; the backward
pass makes the dropout mask again; the factors are float32 and are cast to the dtype of y inside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from peftcli.layers.base_linear import Slice
from peftcli.layers.cpu.wide_products import is_emulated, product
from peftcli.layers.dropout import dropout as drop
from peftcli.layers.dropout import kept_share, threshold
from peftcli.layers.row_draws import Draw, draw
from peftcli.layers.without_autocast import without_autocast

_plain = False


@contextmanager
def plain_lowrank(on: bool = True) -> Iterator[None]:
    """Compute every call inside by the plain chain of operations; with `on` False, change nothing."""
    global _plain
    before, _plain = _plain, _plain or on
    try:
        yield
    finally:
        _plain = before


def lowrank_add(
    y: Tensor,
    x: Tensor,
    a: Tensor,
    b: Tensor,
    scale: float | Tensor,
    rows: Slice | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Return y with scale * (dropout(x) A^T) B^T added.

    y's memory is reused: it must be the caller's own (what a projection has just returned), and the caller must not use
    it again. Should autograd still need y for another operation, it notices the write and raises an error.

    Args:
        y: (..., d_out), or (..., whole width) with `rows`.
        x: (..., d_in), any floating dtype; computed in y's.
        a: (r, d_in), any floating dtype; cast to y's.
        b: (d_out, r), likewise.
        scale: a number, or a gate's output that broadcasts against (..., d_out).
        rows: the features of a fused y that the product belongs to.
        dropout: probability with which an element of x is zeroed; 0 when not training.

    Returns:
        y's shape and dtype.
    """
    if isinstance(scale, Tensor) or not _fast(y):
        with without_autocast(y.device.type):
            return _chain(y, x, a, b, scale, rows, dropout)
    drawn = draw(x.shape) if dropout else None
    apply: Callable[..., Tensor] = _LowRankAdd.apply  # untyped in torch
    return apply(y, x, a, b, scale, rows, dropout, drawn)


FAST_DEVICES = {"cpu", "cuda"}
"""Where the one function is used; on others the plain chain is, and on meta there is nothing to save."""


def _fast(y: Tensor) -> bool:
    if _plain or y.device.type not in FAST_DEVICES:
        return False
    if not y.is_contiguous() or (y.is_leaf and y.requires_grad):
        return False
    return not torch.compiler.is_compiling()  # the compiler fuses the plain chain by itself, and cannot trace the write


def _chain(
    y: Tensor,
    x: Tensor,
    a: Tensor,
    b: Tensor,
    scale: float | Tensor,
    rows: Slice | None,
    dropout: float,
) -> Tensor:
    """Compute the sum by ordinary operations; y itself is left as it is."""
    hidden = F.linear(drop(x.to(y.dtype), dropout), a.to(y.dtype))
    factor = scale.to(y.dtype) if isinstance(scale, Tensor) else scale
    if isinstance(factor, Tensor) and (factor.ndim == 0 or factor.shape[-1] == 1):
        delta = F.linear(hidden * factor, b.to(y.dtype))  # r wide, not d_out wide
    else:
        delta = F.linear(hidden, b.to(y.dtype)) * factor
    return y + delta if rows is None else rows.add(y, delta)


class _LowRankAdd(torch.autograd.Function):
    """The fast path; see the module's docstring for what is kept.

    `forward` writes into y through a detached alias, so autograd sees a function from y to a new tensor. The declared
    way, `ctx.mark_dirty(y)`, gives the same numbers but costs 10 to 25 % more time in forward and backward of a
    projection with LoRA: its y is a view, whose gradient autograd then copies twice. A new tensor (`addmm`) costs up to
    5 % in float32 and 10 % in bfloat16, and a second y in memory (measured on one CPU core, 512 to 2,048 tokens).
    The write is safe on a base that FSDP2 shards: y is an activation, and FSDP puts other tensors in the place of
    parameters only (tests/layers/parts/test_sharded_base.py).
    """

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        x: Tensor,
        a: Tensor,
        b: Tensor,
        scale: float,
        rows: Slice | None,
        dropout: float,
        drawn: Draw | None,
    ) -> Tensor:
        out = y.detach()  # the same memory, and the same version counter: by it autograd notices the write
        with without_autocast(y.device.type):
            inputs = _flat(x, y.dtype)
            mask = _mask(inputs.shape, inputs.device, dropout, drawn)
            inputs = inputs if mask is None else inputs * mask
            alpha = scale / kept_share(dropout)
            # (r, n), not (n, r): the CPU's products of a wide matrix with a narrow one are up to four times slower
            hidden = product(a.to(y.dtype), inputs.T)
            _add_product_(out, hidden.T, b.to(y.dtype), alpha, rows)
        # a frozen A (LoRA-FA) needs no x: r numbers of each token are kept in place of d_in
        ctx.save_for_backward(x if ctx.needs_input_grad[2] else None, a, b, hidden)
        ctx.shape, ctx.dtype = x.shape, x.dtype
        ctx.alpha, ctx.rows, ctx.dropout, ctx.drawn = alpha, rows, dropout, drawn
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, a, b, hidden = ctx.saved_tensors
        grad_x = grad_a = grad_b = None
        _, need_x, need_a, need_b, *_ = ctx.needs_input_grad
        with without_autocast(grad.device.type):
            own = grad if ctx.rows is None else ctx.rows.take(grad)
            own = own.reshape(-1, own.shape[-1])
            if need_b:
                grad_b = product(hidden, own).T.to(b.dtype).mul_(ctx.alpha)
            if need_a or need_x:
                small = product(b.to(grad.dtype).T, own.T).mul_(ctx.alpha)
                mask = _mask(torch.Size((own.shape[0], ctx.shape[-1])), grad.device, ctx.dropout, ctx.drawn)
            if need_a:
                inputs = _flat(x, grad.dtype)
                grad_a = product(small, inputs if mask is None else inputs * mask).to(a.dtype)
            if need_x:
                flat = product(small.T, a.to(grad.dtype))
                grad_x = (flat if mask is None else flat.mul_(mask)).to(ctx.dtype).view(ctx.shape)
        return grad, grad_x, grad_a, grad_b, None, None, None, None


def _flat(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.reshape(-1, x.shape[-1]).to(dtype)


def _mask(shape: torch.Size, device: torch.device, rate: float, drawn: Draw | None) -> Tensor | None:
    """Return the kept elements, (n, d_in) of bool and the same for the same draw; None where all are."""
    return None if drawn is None else (drawn.bits(device) >= threshold(rate)).view(shape)


def _add_product_(out: Tensor, hidden: Tensor, b: Tensor, alpha: float, rows: Slice | None) -> None:
    """Add alpha * hidden B^T to the rows of `out` in place."""
    flat = out.view(-1, out.shape[-1])
    if is_emulated(out.dtype, out.device):
        added = (hidden.float() @ b.float().T).mul_(alpha)
        if rows is not None:
            flat = flat.view(-1, rows.groups, rows.width).narrow(2, rows.start, rows.size)
        flat.add_(added.view(flat.shape))
    elif rows is None:
        flat.addmm_(hidden, b.T, alpha=alpha)
    elif rows.groups == 1:
        flat.narrow(1, rows.start, rows.size).addmm_(hidden, b.T, alpha=alpha)
    else:
        view = flat.view(-1, rows.groups, rows.width).narrow(2, rows.start, rows.size)
        view.add_((hidden @ b.T).view(-1, rows.groups, rows.size), alpha=alpha)
