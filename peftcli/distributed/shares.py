"""A tensor that is divided among processes: which part of it this one holds, and memory for that part.

A plain tensor is held whole, so callers need no second case for one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

Region = tuple[slice, ...]
"""One slice for each dimension of a whole tensor."""


def is_divided(tensor: Tensor) -> TypeGuard[DTensor]:
    """Tell whether a tensor is a share of a larger one (a `DTensor`)."""
    if type(tensor) in (Tensor, nn.Parameter) or not torch.distributed.is_initialized():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def own_share(tensor: Tensor) -> tuple[Tensor, Region]:
    """Return what this process holds of a tensor, sharing its memory, and where that lies in the whole."""
    if not is_divided(tensor):
        return tensor.detach(), tuple(slice(0, size) for size in tensor.shape)
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, start = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    region = tuple(slice(first, first + size) for first, size in zip(start, shape, strict=True))
    return tensor.to_local().detach(), region


@torch.no_grad()
def allocate_(parameters: Iterable[nn.Parameter], device: torch.device) -> None:
    """Give parameters on the meta device memory without values; of a divided one, for this process's share.

    Each stays the same object, so that tied modules still share it.

    Args:
        device: of the memory.
    """
    for parameter in parameters:
        if not parameter.is_meta:
            continue
        fresh = nn.Parameter(torch.empty_like(parameter, device=device), requires_grad=parameter.requires_grad)
        vars(fresh).update(vars(parameter))
        torch.utils.swap_tensors(parameter, fresh)  # type: ignore[no-untyped-call]
