"""bfloat16 products in float32, on a CPU that has no instructions for bfloat16.

Torch emulates those instructions there and takes four times as long as for a float32 product with AVX512, and about
twenty times with AVX2. Here both operands are widened for the product, which changes no value, and the result is
rounded to bfloat16; the instructions do the same. Weights and activations stay bfloat16 in memory, and the backward
pass widens the operands again, so that nothing wide is kept for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from peftcli.layers.cpu.attention_call import AttentionCall
from peftcli.layers.without_autocast import without_autocast

FEW_ROWS = 4
"""Number of rows below which torch's own product is faster, because widening the weight takes longer than to multiply
by it: on one core and with a weight of 1,536 by 576, one row took 0.13 ms beside 0.33, four rows 0.43 beside 0.53 with
AVX512 and 0.52 beside 0.44 with AVX2."""

_PLAIN_TENSORS = {Tensor, nn.Parameter}

_widening = False


@cache
def cpu_has_bfloat16() -> bool:
    """Tell whether this CPU multiplies bfloat16 in hardware (AVX512-BF16 or AMX; Linux only, elsewhere assume not)."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    line = next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), "")
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(line.partition(":")[2].split())


def is_emulated(dtype: torch.dtype | None, device: torch.device) -> bool:
    """Tell whether torch would emulate products of this dtype on this device."""
    return dtype == torch.bfloat16 and device.type == "cpu" and not cpu_has_bfloat16()


def product(a: Tensor, b: Tensor) -> Tensor:
    """Return a @ b in a's dtype, for a function's own forward or backward: autograd is not meant to follow it."""
    if not is_emulated(a.dtype, a.device):
        return a @ b
    return (a.float() @ b.float()).to(a.dtype)


@contextmanager
def wide_products(on: bool = True) -> Iterator[None]:
    """Multiply bfloat16 matrices in float32 inside, where the CPU would emulate them; elsewhere change nothing."""
    global _widening
    if not on or cpu_has_bfloat16():
        yield
        return
    before, _widening = _widening, True
    try:
        with WideProducts():
            yield
    finally:
        _widening = before


def is_widening() -> bool:
    """Tell whether this code runs inside `wide_products`."""
    return _widening


class WideProducts(TorchFunctionMode):
    """The context itself: it replaces the calls of torch's products, whichever model's code makes them.

    A call is replaced if it would compute in bfloat16 on a CPU, because autocast says so or because all of its operands
    are bfloat16, and if its operands are plain tensors.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run `func`, or the same in float32."""
        own, kwargs = _WIDE.get(func), kwargs or {}
        if own is None or not _in_bfloat16(args, kwargs):
            return func(*args, **kwargs)
        with without_autocast("cpu"):
            return own(*map(_narrow, args), **{name: _narrow(value) for name, value in kwargs.items()})


def _in_bfloat16(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    found = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    floats = [tensor for tensor in found if tensor.is_floating_point()]
    if not floats or any(type(x) not in _PLAIN_TENSORS or x.device.type != "cpu" for x in found):
        return False
    if torch.compiler.is_compiling() or any(x.dtype == torch.float64 for x in floats):
        return False
    if torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu") == torch.bfloat16
    return all(x.dtype == torch.bfloat16 for x in floats)


def _narrow(value: Any) -> Any:
    """Round what is no bfloat16 yet, as autocast would."""
    return value.to(torch.bfloat16) if isinstance(value, Tensor) and value.is_floating_point() else value


def _wide(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def _widened(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
    """Run any product on widened operands; autograd keeps these."""
    out: Tensor = func(*map(_wide, args), **{name: _wide(value) for name, value in kwargs.items()})
    return out.to(torch.bfloat16)


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    # torch's names, since they may be given by keyword
    if input.numel() < FEW_ROWS * input.shape[-1]:
        return F.linear(input, weight, bias)
    apply: Callable[..., Tensor] = _WideLinear.apply  # untyped in torch
    return apply(input, weight, bias)


def _addmm(*args: Any, **kwargs: Any) -> Tensor:
    """Compute bias + x W, as transformers' Conv1D calls it, or any other `addmm`."""
    if kwargs or args[0].dim() != 1:
        return _widened(torch.addmm, *args, **kwargs)
    bias, x, weight = args
    return _linear(x, weight.T, bias)


def _matmul(*args: Any, **kwargs: Any) -> Tensor:
    if kwargs or any(x.dim() < 2 for x in args):
        return _widened(torch.matmul, *args, **kwargs)
    apply: Callable[..., Tensor] = _WideMatmul.apply  # untyped in torch
    return apply(*args)


def _attention(*args: Any, **kwargs: Any) -> Tensor:
    call = AttentionCall(*args, **kwargs)
    mask = _wide(call.attn_mask)
    if call.dropout_p or (mask is not None and mask.requires_grad):
        return _widened(F.scaled_dot_product_attention, *args, **kwargs)
    settings = _Attention(mask, call.is_causal, call.scale, call.enable_gqa)
    apply: Callable[..., Tensor] = _WideAttention.apply  # untyped in torch
    return apply(call.query, call.key, call.value, settings)


_WIDE: dict[Any, Callable[..., Tensor]] = {
    F.linear: _linear,
    F.scaled_dot_product_attention: _attention,
    **dict.fromkeys((torch.addmm, Tensor.addmm), _addmm),
    **dict.fromkeys((torch.matmul, torch.bmm, torch.mm), _matmul),
    **dict.fromkeys((Tensor.matmul, Tensor.__matmul__, Tensor.bmm, Tensor.mm), _matmul),
    **{func: partial(_widened, func) for func in (torch.baddbmm, Tensor.baddbmm, torch.einsum, F.conv1d)},
}


class _WideLinear(torch.autograd.Function):
    """x W^T + b of bfloat16 tensors; it keeps the bfloat16 operands that a gradient needs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        needs_x, needs_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if needs_weight else None, weight if needs_x else None)
        return F.linear(x.float(), weight.float(), None if bias is None else bias.float()).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        wide = grad.float()
        grad_x = (wide @ weight.float()).to(grad.dtype) if needs_x else None
        rows = wide.reshape(-1, wide.shape[-1])
        grad_weight = (rows.T @ x.reshape(-1, x.shape[-1]).float()).to(grad.dtype) if needs_weight else None
        return grad_x, grad_weight, rows.sum(0).to(grad.dtype) if needs_bias else None


class _WideMatmul(torch.autograd.Function):
    """a b of bfloat16 tensors with at least two dimensions each; it keeps them as they are."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        needs_a, needs_b = ctx.needs_input_grad
        ctx.save_for_backward(a if needs_b else None, b if needs_a else None)
        ctx.shapes = a.shape, b.shape
        return (a.float() @ b.float()).to(a.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        a, b = ctx.saved_tensors
        wide, (of_a, of_b) = grad.float(), ctx.shapes
        grad_a = (wide @ b.float().mT).sum_to_size(of_a).to(grad.dtype) if b is not None else None
        grad_b = (a.float().mT @ wide).sum_to_size(of_b).to(grad.dtype) if a is not None else None
        return grad_a, grad_b


@dataclass(frozen=True)
class _Attention:
    """Attention without dropout; see `AttentionCall`."""

    mask: Tensor | None
    is_causal: bool
    scale: float | None
    enable_gqa: bool

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return AttentionCall(query, key, value, self.mask, 0.0, self.is_causal, self.scale, self.enable_gqa).by_torch()


class _WideAttention(torch.autograd.Function):
    """Attention without dropout. It keeps the bfloat16 operands, and computes the float32 result again to derive it.

    Torch's own function would keep four float32 tensors.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, attention: _Attention) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.attention = attention
        return attention(query.float(), key.float(), value.float()).to(query.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[:3]
        leaves = [x.float().requires_grad_(need) for x, need in zip(ctx.saved_tensors, needed, strict=True)]
        with torch.enable_grad(), without_autocast("cpu"):
            out = ctx.attention(*leaves)
        found = iter(torch.autograd.grad(out, [leaf for leaf in leaves if leaf.requires_grad], grad.float()))
        return *(next(found).to(grad.dtype) if need else None for need in needed), None
