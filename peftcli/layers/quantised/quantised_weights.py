"""Read a layer whose weight is held in fewer bits, whatever library made it: its numbers, its size, its whole weight.

A layer that has no weight to look at is asked for one: the product with the identity matrix is the transposed weight.
Importing the libraries themselves would cost seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

_ROWS = 1024
"""Rows of the identity matrix that pass through a layer at a time."""


def own_tensors(module: nn.Module) -> Iterator[Tensor]:
    """Yield a module's own parameters and buffers, without those of its children."""
    return chain(module.parameters(recurse=False), module.buffers(recurse=False))


def is_quantised(module: nn.Module) -> bool:
    """Tell whether a layer with widths of a projection holds its weight in fewer bits than a plain one."""
    if not all(isinstance(getattr(module, name, None), int) for name in ("in_features", "out_features")):
        return False
    weight = getattr(module, "weight", None)
    if isinstance(weight, Tensor):
        packed = _bits(module) is not None or has_own_dequantize(weight)
        return packed or (weight.dtype.itemsize == 1 and not weight.is_meta)
    return any(not tensor.is_floating_point() for tensor in own_tensors(module))  # codes, and what they mean


def logical_numel(tensor: Tensor) -> int:
    """Return how many numbers a tensor stands for: a packed 4-bit weight stores two in a byte."""
    state = getattr(tensor, "quant_state", None)
    return tensor.numel() if state is None else prod(state.shape)


def logical_sizes(module: nn.Module) -> dict[str, int]:
    """Return how many numbers each of a module's own parameters stands for, by name.

    A quantised layer's weight counts what it stands for, also where it is divided among processes or is no parameter;
    the scales and zero points beside it do not count.
    """
    sizes = {name: logical_numel(parameter) for name, parameter in module.named_parameters(recurse=False)}
    if is_quantised(module):
        bias = {name: size for name, size in sizes.items() if name == "bias"}
        return {"weight": int(module.in_features) * int(module.out_features), **bias}  # type: ignore[arg-type]
    return sizes


def logical_numbers(model: nn.Module) -> dict[str, int]:
    """Return how many numbers each weight of a model stands for, by name; shared ones once."""
    found: dict[str, int] = {}
    seen: set[int] = set()
    for path, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        for name, size in logical_sizes(module).items():
            key = id(own.get(name, module))  # a packed weight that is no parameter is its module's own
            if key not in seen:
                seen.add(key)
                found[f"{path}.{name}".lstrip(".")] = size
    return found


@torch.no_grad()
def dequantised(module: nn.Module) -> Tensor | None:
    """Return the whole weight of a quantised layer, (out_features, in_features), float32; None of a plain one."""
    if not is_quantised(module):
        return None
    weight: Any = getattr(module, "weight", None)
    kind = _bits(module)
    if kind == "4bit":
        state = getattr(weight, "quant_state", None) or getattr(module, "quant_state", None)
        if state is not None:
            return _unpacked(weight, state)
    if kind == "8bit" and weight.dtype == torch.int8:
        # row-wise absmax codes, W = CB * SCB / 127; the first forward pass moves SCB from the weight to the module
        moved: Any = module.state
        scales: Tensor = moved.SCB if getattr(weight, "SCB", None) is None else weight.SCB
        codes: Tensor = weight.data.float()
        return codes * (scales.float() / 127.0).unsqueeze(1)
    if kind is not None:
        return None  # not packed yet
    if isinstance(weight, Tensor) and has_own_dequantize(weight):
        return weight.dequantize().float()
    return _by_products(module)


def _bits(module: nn.Module) -> str | None:
    """Return 4bit, 8bit or None, by bitsandbytes' parameter class.

    The weight of a base that is divided among processes is a plain one; its module keeps what the 4-bit numbers mean.
    """
    found = {"Params4bit": "4bit", "Int8Params": "8bit"}.get(type(getattr(module, "weight", None)).__name__)
    return "4bit" if found is None and getattr(module, "quant_state", None) is not None else found


def _unpacked(weight: Tensor, state: Any) -> Tensor:
    from bitsandbytes.functional import dequantize_4bit  # imported only where a 4-bit base is: it takes seconds

    unpacked: Tensor = dequantize_4bit(weight.data, state)
    return unpacked.float()


def has_own_dequantize(weight: Tensor) -> bool:
    """Tell whether a weight is a tensor of a class that knows what its numbers mean (torchao, quanto)."""
    return type(weight).dequantize is not Tensor.dequantize


def _by_products(module: nn.Module) -> Tensor:
    """Return a layer's weight from its products with unit vectors; hooks and parts of the layer take no part."""
    width = int(module.in_features)  # type: ignore[arg-type]  # an int of a duck-typed module
    wide = [tensor for tensor in own_tensors(module) if tensor.is_floating_point() and tensor.dtype.itemsize > 1]
    dtype = wide[0].dtype if wide else torch.float32
    device = next(own_tensors(module)).device
    start: Tensor = module.forward(torch.zeros(1, width, dtype=dtype, device=device)).float()
    columns = []
    for first in range(0, width, _ROWS):
        rows = torch.zeros(min(_ROWS, width - first), width, dtype=dtype, device=device)
        rows[:, first : first + len(rows)].fill_diagonal_(1.0)
        columns.append(module.forward(rows).float() - start)
    return torch.cat(columns).T


@torch.no_grad()
def make_plain(model: nn.Module, dtype: torch.dtype) -> None:
    """Put an `nn.Linear` with the dequantised weight in the place of each quantised layer, before parts are attached.

    Where there is one, the model's other weights are widened to `dtype` if theirs is narrower: a checkpoint that is
    stored quantised keeps the dtype of these, whatever is asked for.

    Args:
        model: changed in place; one weight after the other, so that both forms of the model never exist at once.
        dtype: of the plain weights.
    """
    found = False
    for path, module in list(model.named_modules()):
        weight = dequantised(module)
        if weight is None:
            continue
        bias = getattr(module, "bias", None)
        plain = nn.Linear(weight.shape[1], weight.shape[0], bias=isinstance(bias, Tensor), device="meta")
        plain.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
        if isinstance(bias, Tensor):
            plain.bias = nn.Parameter(bias.detach().to(dtype), requires_grad=False)
        model.set_submodule(path, plain.train(module.training))
        found = True
    for other in [*model.parameters(), *model.buffers()] if found else ():
        if other.is_floating_point() and torch.promote_types(other.dtype, dtype) == dtype:
            other.data = other.data.to(dtype)
