"""Whole tensors from the shares of several processes, and shares from whole tensors. Other tensors pass through.

Whatever reads or writes values that may be divided (checkpoints, results, initial values) goes through here.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def is_share(tensor: Tensor) -> bool:
    """Return whether a tensor is a process's share of a whole one."""
    if "torch.distributed.tensor" not in sys.modules:  # nothing was divided, and the import takes time
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def own_part(tensor: Tensor) -> Tensor:
    """Return what this process holds of a tensor: its share, or all of it."""
    if not is_share(tensor):
        return tensor
    local: Tensor = tensor.to_local()  # type: ignore[attr-defined]  # a DTensor
    return local


def held_parts(tensor: Tensor) -> list[Tensor]:
    """Return the plain tensors that hold a tensor in this process: its share, or what a class of its own wraps."""
    part: Any = own_part(tensor)
    if not is_traceable_wrapper_subclass(part):
        return [part]
    names, _context = part.__tensor_flatten__()
    return [inner for name in names for inner in held_parts(getattr(part, name))]


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor whole; every process must call this for a share."""
    if not is_share(tensor):
        return tensor
    full: Tensor = tensor.full_tensor()  # type: ignore[attr-defined]  # a DTensor
    return full


def whole_tree(tree: Mapping[str, Any], *, keep: bool) -> dict[str, Any]:
    """Return a tree of mappings, lists and tuples with every share as a whole tensor on the CPU.

    Every process must call this with a tree of the same structure. Tensors that are the same share (tied weights) are
    one tensor in the result, too.

    Args:
        keep: False in a process that needs nothing of the result: shares come back as None, and take no memory.
    """
    found: dict[int, Tensor | None] = {}

    def gathered(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: gathered(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(gathered(item) for item in value)
        if not isinstance(value, Tensor) or not is_share(value):
            return value
        address = own_part(value).untyped_storage().data_ptr()
        if not address or address not in found:  # an empty share has no address of its own
            full = whole(value.detach())
            found[address] = full.cpu() if keep else None
        return found[address]

    return {key: gathered(value) for key, value in tree.items()}


def put(target: Tensor, values: Tensor) -> None:
    """Copy whole values into a tensor, or into this process's share of it."""
    target.copy_(as_shares_of(target, values))


def as_shares_of(target: Tensor, values: Tensor) -> Tensor:
    """Return whole values divided as `target` is, without a message: each process has them all."""
    if not is_share(target) or is_share(values):
        return values
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = target.device_mesh, target.placements  # type: ignore[attr-defined]  # a DTensor
    values = values.to(device=target.device)
    return distribute_tensor(values, mesh, placements, src_data_rank=None)


def optimizer_shares(state: dict[str, Any], parameters: Iterable[nn.Parameter]) -> dict[str, Any]:
    """Return an optimizer's state of whole tensors with those of divided parameters divided alike.

    Args:
        state: of `Optimizer.state_dict`.
        parameters: of the optimizer, in its order.
    """
    ordered = list(parameters)
    if not any(is_share(parameter) for parameter in ordered):
        return state

    def divided(parameter: nn.Parameter, value: Any) -> Any:
        same = isinstance(value, Tensor) and value.shape == parameter.shape and value.ndim > 0
        return as_shares_of(parameter, value) if same else value

    states = {
        index: {key: divided(ordered[index], value) for key, value in values.items()}
        for index, values in state["state"].items()
    }
    return {**state, "state": states}


def held_bytes(parameters: Iterable[nn.Parameter]) -> int:
    """Return the bytes of memory that parameters take in this process, shared ones once."""
    with torch.no_grad():
        storages = [part.untyped_storage() for parameter in parameters for part in held_parts(parameter)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
