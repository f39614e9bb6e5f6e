"""NEFTune: uniform noise on the input embeddings while training (Jain et al. 2023, arXiv:2310.05914, algorithm 1).

As in the official code, the noise of a row has the size of its own length, padding left out, so that neither the noise
nor its size depends on the rows beside.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from peftcli.layers.hashed_bits import STATES
from peftcli.layers.row_draws import draw, lengths_for


def add_neftune(embeddings: nn.Module, alpha: float) -> RemovableHandle:
    """Add noise of magnitude alpha / sqrt(seq * d_model) to an embedding's output in training mode; return the hook."""

    def hook(module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> Tensor:
        if not module.training:
            return output
        bound = alpha * _shares(output, lengths_for(output.shape))
        bits = draw(output.shape).bits(output.device)
        return output + (bits.to(torch.float32) + 0.5).mul_(bound * (2 / STATES)).to(output.dtype)

    return embeddings.register_forward_hook(hook)


def _shares(output: Tensor, lengths: Sequence[int] | None) -> Tensor | float:
    """Return 1 / sqrt(seq * d_model): (rows, 1, 1) where the lengths of the rows are known, else one for all."""
    *_, padded, width = output.shape
    if lengths is None:
        return float((padded * width) ** -0.5)
    own = torch.tensor([(length * width) ** -0.5 for length in lengths], dtype=torch.float32)
    return own.view(-1, 1, 1).to(output.device, non_blocking=True)
