"""NEFTune: uniform noise on the input embeddings while training (Jain et al. 2023, arXiv:2310.05914, algorithm 1)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


def add_neftune(embeddings: nn.Module, alpha: float) -> RemovableHandle:
    """Add noise of magnitude alpha / sqrt(seq * d_model) to an embedding's output in training mode; return the hook."""

    def hook(module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> Tensor:
        if not module.training:
            return output
        bound = alpha / (output.shape[-2] * output.shape[-1]) ** 0.5
        return output + torch.empty_like(output).uniform_(-bound, bound)

    return embeddings.register_forward_hook(hook)
