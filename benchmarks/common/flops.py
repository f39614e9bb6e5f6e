"""Model FLOPs of one training step, and the matrix-product peak that they are held against.

With a frozen base a token costs 4N: 2N forward, 2N for the gradient of the activations, nothing for the weights'
gradient. N counts the blocks' matrices; the head's are counted for supervised tokens only, since no other position
needs logits, and of a classifier's last block keys and values alone are counted for all tokens, the rest for the first.
Attention adds 2 T^2 d forward and twice that backward for each causal layer (double without the mask).
The adapter's own products are left out. Padding does no work here, and recomputation is not counted.
"""

from __future__ import annotations

import time
from typing import Any

import torch


def step_flops(model: Any, rows: list[dict[str, Any]], causal: bool) -> float:
    """Return the FLOPs that the rows need, for a model with a frozen base."""
    config = model.config
    head = model.get_output_embeddings() if causal else None
    excluded = {id(head.weight)} if head is not None else set()
    excluded.add(id(model.get_input_embeddings().weight))
    blocks = sum(p.numel() for p in model.parameters() if p.ndim == 2 and id(p) not in excluded)
    tokens = sum(len(row["input_ids"]) for row in rows)
    flops = 4.0 * blocks * tokens
    if not causal:
        flops -= 4.0 * _last_block_elsewhere(model) * (tokens - len(rows))
    if head is not None:
        supervised = sum(sum(label != -100 for label in row["labels"][1:]) for row in rows)
        flops += 4.0 * head.weight.numel() * supervised
    width = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    squares = sum(len(row["input_ids"]) ** 2 for row in rows)
    layers = config.num_hidden_layers if causal else config.num_hidden_layers - 1  # one query a row is next to nothing
    return flops + (6.0 if causal else 12.0) * width * squares * layers


def _last_block_elsewhere(model: Any) -> int:
    """Return the weights of an encoder's last block that only the first position needs."""
    block = f".{model.config.num_hidden_layers - 1}."
    matrices = {name: p.numel() for name, p in model.named_parameters() if p.ndim == 2 and block in name}
    return sum(size for name, size in matrices.items() if not any(word in name for word in ("key", "value")))


def matmul_peak(dtype: torch.dtype, device: str, size: int | None = None, repeats: int = 60) -> float:
    """Return the best FLOP/s of a square matrix product here, now."""
    size = size or (1536 if device == "cpu" else 8192)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(repeats):
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best
