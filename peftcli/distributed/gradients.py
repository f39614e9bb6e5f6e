"""What happens to gradients between the backward passes and the optimizer's step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

if TYPE_CHECKING:
    from accelerate import Accelerator


def any_gradient(parameters: Iterable[nn.Parameter]) -> bool:
    """Return whether any has a gradient: not where every block with something to train was dropped in a step."""
    return any(parameter.grad is not None for parameter in parameters)


def clip_gradients(accelerator: Accelerator, parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
    """Take the loss scale out of gradients and shorten them to a common norm; return the norm that they had.

    Accelerate does both, for plain tensors and shards (DTensors) beside each other: it joins the norms of the two.

    Args:
        parameters: with the gradients of the whole step, summed over the processes.
        limit: on the norm of all of them; infinity shortens nothing.

    Returns:
        The norm, a plain tensor, the same on every process; 0 where nothing has a gradient.
    """
    parameters = list(parameters)
    if not any_gradient(parameters):  # a scaler asks for one
        return torch.zeros((), device=accelerator.device)
    if accelerator.scaler is not None:  # it has no scale before its first loss, and a process may have no row yet
        accelerator.scaler.scale(torch.zeros((), device=accelerator.device))
    norm: Tensor = accelerator.clip_grad_norm_(parameters, limit)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
