"""Calls on tensors without values: they go through, and questions for values get an answer that lets a model go on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


def flat(value: Any) -> Iterator[Any]:
    """Yield the values in lists, tuples and dictionaries within each other."""
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, list | tuple):
        for each in value:
            yield from flat(each)
    else:
        yield value


def computed(func: Any, args: Any, kwargs: Any) -> Any:
    """Call a function; places, which have values, lose them where it takes no tensors of two devices."""
    try:
        return func(*args, **kwargs)
    except (RuntimeError, NotImplementedError):
        places = [value for value in flat((args, kwargs)) if isinstance(value, Tensor) and not value.is_meta]
        if not places:
            raise
        args, kwargs = _without_values((args, kwargs))
        return func(*args, **kwargs)


def _without_values(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_values(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_without_values(each) for each in value)
    return value.to("meta") if isinstance(value, Tensor) else value


def answered(func: Any, name: str, args: Any, kwargs: Any) -> tuple[bool, Any]:
    """Return whether a function asks for values that a tensor on the meta device lacks, and an answer."""
    first = args[0] if args and isinstance(args[0], Tensor) else None
    if first is None or not first.is_meta:
        return False, None
    plain = {"item": 0, "__bool__": False, "__int__": 0, "__index__": 0, "__float__": 0.0, "__contains__": False}
    if name in plain:
        return True, plain[name]
    if name == "tolist":
        return True, torch.zeros(first.shape, dtype=first.dtype, device="cpu").tolist()
    if name == "nonzero" or (name == "where" and len(args) + len(kwargs) == 1):
        places = _everywhere(first)
        return True, places if name == "where" or kwargs.get("as_tuple") else torch.stack(places, 1)
    if "unique_consecutive" in name:
        return True, first.new_empty(1)
    if name in ("__getitem__", "__setitem__"):
        chosen = args[1] if isinstance(args[1], tuple) else (args[1],)
        if any(isinstance(each, Tensor) and each.dtype == torch.bool for each in chosen):
            return True, func(first, tuple(_by_place(chosen)), *args[2:])
    return False, None


def _by_place(chosen: tuple[Any, ...]) -> Iterator[Any]:
    for each in chosen:
        if isinstance(each, Tensor) and each.dtype == torch.bool:
            yield from _everywhere(each)
        else:
            yield each


def _everywhere(mask: Tensor) -> tuple[Tensor, ...]:
    """Return the places of a mask that is true everywhere, as `nonzero(as_tuple=True)` does."""
    return torch.ones(mask.shape, dtype=torch.bool, device="cpu").nonzero(as_tuple=True)
