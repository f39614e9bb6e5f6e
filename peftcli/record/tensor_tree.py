"""Nested Python data with tensors, as safetensors plus JSON: nothing is pickled, so nothing is unpickled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from peftcli.errors import UserError
from peftcli.typed_record import read_json

_PLAIN, _TENSORS = FILES = ("state.json", "state.safetensors")
"""The files of a tree."""


def save_tree(directory: Path, tree: Any) -> None:
    """Write `tree` as state.json and state.safetensors.

    Args:
        tree: dicts (any plain keys), lists, tuples, tensors, arrays, str, int, float, bool, None.

    Raises:
        TypeError: anything else is inside.
    """
    tensors = _Tensors()
    plain = _pack(tree, tensors)
    save_file(tensors.by_key, directory / _TENSORS)
    (directory / _PLAIN).write_text(json.dumps(plain), encoding="utf-8")


def load_tree(directory: Path) -> Any:
    """Return what `save_tree` wrote; tensors on the CPU.

    Whatever the files hold becomes the types that `save_tree` lists, and nothing is looked up by name.

    Raises:
        UserError: they hold something else.
    """
    plain = read_json(directory / _PLAIN)
    try:
        return _unpack(plain, load_file(directory / _TENSORS))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{directory / _PLAIN} does not fit {_TENSORS} beside it: {error!r}") from error


class _Tensors:
    """The tensors of a tree that is written: each one once, and as it lies in memory where that is possible.

    A checkpoint of full fine-tuning holds the model three times over; copies of that would be the most that a run ever
    takes.
    """

    def __init__(self) -> None:
        self.by_key: dict[str, Tensor] = {}
        self._keys: dict[tuple[Any, ...], str] = {}
        self._storages: set[int] = set()

    def add(self, tensor: Tensor) -> str:
        """Return the tensor's key; one that was there before, under whatever name, has the same one."""
        place = tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()
        if tensor.numel() and place in self._keys:
            return self._keys[place]
        key = self._keys[place] = f"{len(self.by_key):06d}"
        plain = tensor.detach().cpu().contiguous()
        storage = plain.untyped_storage().data_ptr()
        if storage in self._storages:  # another part of the same memory, which safetensors refuses
            plain = plain.clone()
        self._storages.add(storage)
        self.by_key[key] = plain
        return key


def _pack(value: Any, tensors: _Tensors) -> Any:
    if isinstance(value, np.ndarray):
        wide = value.astype(np.int64) if value.dtype.kind == "u" and value.dtype != np.uint8 else value
        return {"array": _pack(torch.from_numpy(wide.copy()), tensors)["tensor"], "dtype": value.dtype.str}
    if isinstance(value, Tensor):
        return {"tensor": tensors.add(value)}
    if isinstance(value, dict):
        return {"dict": [[_pack(k, tensors), _pack(v, tensors)] for k, v in value.items()]}
    if isinstance(value, tuple):
        return {"tuple": [_pack(item, tensors) for item in value]}
    if isinstance(value, list):
        return [_pack(item, tensors) for item in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a checkpoint cannot hold {type(value).__name__}")


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "array" in value:
        dtype = np.dtype(value["dtype"])
        if dtype.kind not in "biuf":
            raise TypeError(f"an array of {dtype}")
        return tensors[value["array"]].numpy().astype(dtype)
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "tuple" in value:
        return tuple(_unpack(item, tensors) for item in value["tuple"])
    return {_unpack(k, tensors): _unpack(v, tensors) for k, v in value["dict"]}
