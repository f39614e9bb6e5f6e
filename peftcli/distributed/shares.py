"""A base that each process fills with its own share: where that lies, memory for it, and what is outside of blocks.

A plain tensor is held whole, so callers need no second case for one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from peftcli.distributed.sharding import is_sharded
from peftcli.distributed.whole_tensors import is_share, own_part

Region = tuple[slice, ...]
"""One slice for each dimension of a whole tensor."""


def own_region(tensor: Tensor) -> tuple[Tensor, Region]:
    """Return what this process holds of a tensor, sharing its memory, and where that lies in the whole."""
    if not is_share(tensor):
        return tensor.detach(), tuple(slice(0, size) for size in tensor.shape)
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    assert isinstance(tensor, DTensor)
    shape, start = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    region = tuple(slice(first, first + size) for first, size in zip(start, shape, strict=True))
    return own_part(tensor).detach(), region


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


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Let every process see what is outside of a divided model's blocks (embeddings, head) whole, as in a pass."""
    if not is_sharded(model):
        yield
        return
    from torch.distributed.fsdp import FSDPModule

    assert isinstance(model, FSDPModule)
    model.unshard()
    try:
        yield
    finally:
        model.reshard()
