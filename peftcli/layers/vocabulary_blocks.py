"""Cross-entropy of a frozen head on a CPU, block by block of the vocabulary, so that logits stay in the cache.

The product that writes a chunk's logits of the whole vocabulary runs at half the speed of other products: its rows lie
a multiple of 4 KiB apart, and every pass over them goes through memory. Over blocks, a running maximum and sum make the
softmax, and the gradient of the hidden states is a sum over blocks that is divided at the end, as FlashAttention does
with values (Dao et al. 2022, arXiv:2205.14135, algorithm 1). A trained head needs the softmax itself for its own
gradient, and is not computed here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from peftcli.layers.cpu.equal_slices import slices

BLOCK = 1024
"""Entries of the vocabulary at a time. From 512 to 2,048 the time is the same (49,152 entries, width 576)."""
ROWS = 512
"""Hidden states at a time: their logits of a block take 2 MiB."""


def cross_entropies(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, scale: float, gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Return -log softmax(scale * (hidden W^T + b)) at the targets, (rows,), and its gradient by `hidden` if asked.

    Args:
        hidden: (rows, d_model), float32 or float64, as the results are.
        weight: (vocab, d_model), of any floating dtype; a block at a time is cast to that of `hidden`.
        bias: (vocab,).
        targets: (rows,) token ids.
        scale: factor on the logits.
    """
    columns = targets[:, None]
    peak = hidden.new_full(columns.shape, -torch.inf)
    total, aimed = torch.zeros_like(peak), torch.zeros_like(peak)
    mean = torch.zeros_like(hidden) if gradient else None  # of the rows of W, weighted by exp(logit - peak)
    for block in slices(len(weight), BLOCK):
        rows = weight[block].to(hidden.dtype)
        logits = hidden @ rows.T
        if bias is not None:
            logits += bias[block]
        if scale != 1.0:
            logits *= scale
        own = columns - block.start
        inside = (own >= 0) & (own < len(rows))
        aimed = torch.where(inside, logits.gather(1, own.clamp(0, len(rows) - 1)), aimed)
        higher = torch.maximum(peak, logits.amax(1, keepdim=True))
        shrunk = (peak - higher).exp_()
        weights, peak = logits.sub_(higher).exp_(), higher
        total.mul_(shrunk).add_(weights.sum(1, keepdim=True))
        if mean is not None:
            mean.mul_(shrunk).addmm_(weights, rows)
    losses = (peak + total.log() - aimed).flatten()
    return losses, None if mean is None else mean.div_(total).sub_(weight[targets]).mul_(scale)
