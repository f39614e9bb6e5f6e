"""Cross-entropy of a language-model head without the logits of the whole batch.

It saves the memory of the logits (tokens, vocab), their float32 copy and their gradient: 12 * tokens * vocab bytes. The
rows go through the head in chunks of limited size. The gradient of the hidden states (and of the head, if it is
trained) is computed in the forward pass, while a chunk's logits exist, so that nothing is computed twice. The idea is
Liger's fused linear cross-entropy (arXiv 2410.10989), in plain torch, because Liger's kernels need Triton and a GPU.
`head_loss` calls the head module itself if that has parts attached or is not a plain linear layer.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from peftcli.layers.cpu.equal_slices import slices
from peftcli.layers.cpu.wide_products import is_emulated, is_widening, wide_products
from peftcli.layers.quantised.quantised_weights import is_quantised
from peftcli.layers.vocabulary_blocks import BLOCK, ROWS, cross_entropies

CHUNK_BYTES = 64 * 2**20
"""Bytes of one chunk's float32 logits. About a thousand rows reach full speed; larger chunks only need more memory."""


@dataclass(frozen=True)
class LogitTransform:
    """What a model family does with its logits after the head.

    Args:
        scale: factor on the logits (Granite divides by `logits_scaling`, Cohere multiplies by `logit_scale`).
        softcap: replace logits by cap * tanh(logits / cap) (Gemma 2); None leaves them.
    """

    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """Return the transformed logits; the input is not changed."""
        logits = logits * self.scale if self.scale != 1.0 else logits
        return self.softcap * torch.tanh(logits / self.softcap) if self.softcap else logits


@dataclass(frozen=True)
class _Settings:
    transform: LogitTransform
    label_smoothing: float
    rows: int
    block_rows: int
    compute_dtype: torch.dtype
    by_row: bool = False

    def in_blocks(self, device: torch.device) -> bool:
        """Whether a frozen head goes block by block of the vocabulary; bfloat16 products were not measured there."""
        plain = not self.label_smoothing and not self.transform.softcap
        return plain and device.type == "cpu" and self.compute_dtype in (torch.float32, torch.float64)

    @property
    def slope(self) -> float:
        """The largest derivative of a transformed logit."""
        return max(1.0, abs(self.transform.scale))


def head_loss(
    head: nn.Module,
    hidden: Tensor,
    targets: Tensor,
    *,
    transform: LogitTransform | None = None,
    label_smoothing: float = 0.0,
    chunk_bytes: int = CHUNK_BYTES,
    least_rows: int = 0,
    by_row: bool = False,
) -> Tensor:
    """Return the summed cross-entropy of `head(hidden)` against `targets`, in float32.

    Args:
        head: the output embeddings.
        hidden: (rows, d_model), of the positions with a label only.
        targets: (rows,) token ids.
        transform: what the family does with its logits.
        label_smoothing: share of the probability that is spread over the vocabulary.
        chunk_bytes: maximum bytes of float32 logits in memory at a time.
        least_rows: of a chunk, whatever they take.
        by_row: return the cross-entropy of each row, (rows,), instead of the sum. A trained head's chunks are then
            computed again in the backward pass, which knows what each row counts.
    """
    transform = transform or LogitTransform()
    trained = torch.is_grad_enabled() and any(p.requires_grad for p in head.parameters())
    if not is_plain_linear(head) or (by_row and trained):
        return _module_loss(head, hidden, targets, transform, label_smoothing, chunk_bytes, by_row)
    assert isinstance(head, nn.Linear)  # is_plain_linear has checked it
    rows = max(1, least_rows, chunk_bytes // (4 * head.out_features))
    block_rows = max(1, min(ROWS, chunk_bytes // (4 * BLOCK)))
    settings = _Settings(transform, label_smoothing, rows, block_rows, compute_dtype(hidden), by_row)
    apply: Callable[..., Tensor] = _HeadCrossEntropy.apply  # untyped in torch
    weight: Tensor = head.weight
    bias: Tensor | None = head.bias
    if not trained:  # an evaluation computes a head that is trained as it does the same head of a saved run
        weight, bias = weight.detach(), bias if bias is None else bias.detach()
    loss: Tensor = apply(hidden, weight, bias, targets, settings)
    return loss


def is_plain_linear(head: nn.Module) -> bool:
    """Tell whether `head` computes x @ W.T + b and nothing else: no parts, no hooks, no quantised weight."""
    hooks = head._forward_hooks or head._forward_pre_hooks
    plain = type(head) is nn.Linear and not head._modules and not hooks and head.weight.is_floating_point()
    return plain and not is_quantised(head)


def compute_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype in which a head computes on `x`: autocast's, if it is on; float32 where that is emulated."""
    autocast = x.dtype != torch.float64 and torch.is_autocast_enabled(x.device.type)
    dtype = torch.get_autocast_dtype(x.device.type) if autocast else x.dtype
    return torch.float32 if is_emulated(dtype, x.device) else dtype


def _module_loss(
    head: nn.Module,
    hidden: Tensor,
    targets: Tensor,
    transform: LogitTransform,
    label_smoothing: float,
    chunk_bytes: int,
    by_row: bool,
) -> Tensor:
    """Return the same loss by calling the module; several chunks are computed again in the backward pass."""

    def loss_of(h: Tensor, t: Tensor) -> Tensor:
        logits = transform(head(h))
        logits = logits if by_row and logits.dtype == torch.float64 else logits.float()
        return F.cross_entropy(logits, t, reduction="none" if by_row else "sum", label_smoothing=label_smoothing)

    vocab = int(getattr(head, "out_features", 0)) or int(head(hidden[:1].detach()).shape[-1])
    rows = max(1, chunk_bytes // (4 * vocab))
    if len(hidden) <= rows:
        return loss_of(hidden, targets)
    starts = range(0, len(hidden), rows)
    parts = [_recomputed(loss_of, hidden[start : start + rows], targets[start : start + rows]) for start in starts]
    if by_row:
        return torch.cat(parts)
    return sum(parts, hidden.new_zeros((), dtype=torch.float32))


def _recomputed(function: Callable[[Tensor, Tensor], Tensor], h: Tensor, t: Tensor) -> Tensor:
    result: Tensor = checkpoint(
        function, h, t, use_reentrant=False, context_fn=lambda: (nullcontext(), wide_products(is_widening()))
    )
    return result


class _HeadCrossEntropy(torch.autograd.Function):
    """The sum of cross-entropies, or each. Keeps dL/dhidden (and dL/dW, dL/db if they are trained), but no logits.

    Of each row's own loss the gradient is a factor on the row's dL/dhidden, which `backward` brings.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, settings: _Settings
    ) -> Tensor:
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        total = hidden.new_zeros((len(hidden),) if settings.by_row else (), dtype=wide)
        d_hidden = torch.empty_like(hidden, dtype=_kept(hidden.dtype)) if needs_hidden else None
        d_weight = torch.zeros_like(weight, dtype=wide) if needs_weight else None
        d_bias = torch.zeros_like(bias, dtype=wide) if needs_bias and bias is not None else None
        with torch.autocast(hidden.device.type, enabled=False):  # cast here, once a call
            in_blocks = settings.in_blocks(hidden.device) and not (needs_weight or needs_bias)
            w = weight if in_blocks else weight.to(settings.compute_dtype)  # each block is cast by itself
            b = None if bias is None else bias.to(settings.compute_dtype)
            rows = settings.block_rows if in_blocks else settings.rows
            for chunk in slices(len(hidden), rows):
                h = hidden[chunk].to(settings.compute_dtype)
                if in_blocks:
                    losses, d_h = cross_entropies(h, w, b, targets[chunk], settings.transform.scale, needs_hidden)
                    loss = losses if settings.by_row else losses.sum()
                else:
                    loss, d_logits = _chunk(F.linear(h, w, b).to(wide), targets[chunk], settings)
                    d_h = _product(d_logits, w, 2 * settings.slope) if needs_hidden else None
                if settings.by_row:
                    total[chunk] = loss
                else:
                    total += loss
                if d_hidden is not None and d_h is not None:
                    d_hidden[chunk] = d_h
                if d_weight is not None:
                    d_weight += _product(d_logits.T, h, len(h) * settings.slope)
                if d_bias is not None:
                    d_bias += d_logits.sum(0)
        d_weight = None if d_weight is None else d_weight.to(_kept(weight.dtype))
        d_bias = None if d_bias is None or bias is None else d_bias.to(_kept(bias.dtype))
        ctx.save_for_backward(d_hidden, d_weight, d_bias)
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in (hidden, weight, bias)]
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        saved = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        grad = grad[:, None] if grad.dim() else grad  # of each row, and then only the hidden states have a gradient
        d_hidden, d_weight, d_bias = (None if d is None else (d * grad.to(d.dtype)).to(dtype) for d, dtype in saved)
        return d_hidden, d_weight, d_bias, None, None


def _kept(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which a gradient waits for the factor that `backward` brings: float16's range is too small.

    That factor is the loss scale divided by the count of the step. Before, small gradients would become zero.
    """
    return torch.float32 if dtype == torch.float16 else dtype


def _product(d_logits: Tensor, other: Tensor, most: float) -> Tensor:
    """Return `d_logits @ other`, computed in the dtype of `other`; in float32 where that is float16.

    A power of two takes float16 operands to the upper end of that dtype's range, where few of them become zero.

    Args:
        d_logits: float32, or float64 beside that.
        most: bound on the sum of the absolute values in a row of `d_logits`.
    """
    if other.dtype != torch.float16:
        return d_logits.to(other.dtype) @ other
    room = torch.finfo(torch.float16).max / 2 / (most * other.abs().amax().float().clamp_min(1.0))
    factor = room.log2().floor().exp2()
    return ((d_logits * factor).to(other.dtype) @ other).float() / factor


def _chunk(raw: Tensor, targets: Tensor, settings: _Settings) -> tuple[Tensor, Tensor]:
    """Return the summed loss of one chunk, or each row's, and its gradient with respect to the head's output.

    Args:
        raw: (rows, vocab) output of the head; it is overwritten.
    """
    transform, smoothing = settings.transform, settings.label_smoothing
    logits = raw.mul_(transform.scale) if transform.scale != 1.0 else raw
    slope: Tensor | None = None
    if transform.softcap:
        bounded = logits.div_(transform.softcap).tanh_()
        slope = 1 - bounded.square()
        logits = bounded.mul_(transform.softcap)
    peak = logits.amax(-1, keepdim=True)
    shifted = logits.sub_(peak)  # in place: the loss stays the same, and no second tensor of this size is needed
    total: Callable[[Tensor], Tensor] = torch.flatten if settings.by_row else torch.sum
    loss = (smoothing - 1) * total(shifted.gather(1, targets[:, None]))
    if smoothing:
        loss = loss - smoothing * total(shifted.mean(-1))
    grad = shifted.exp_()
    normaliser = grad.sum(-1, keepdim=True)
    loss = loss + total(normaliser.log())
    grad.div_(normaliser)  # softmax, in place of the logits
    if smoothing:
        grad.sub_(smoothing / grad.shape[-1])
    grad.scatter_add_(1, targets[:, None], grad.new_full((len(targets), 1), smoothing - 1.0))
    if slope is not None:
        grad.mul_(slope)
    if transform.scale != 1.0:
        grad.mul_(transform.scale)
    return loss, grad
