"""Nested Python data with tensors, as safetensors plus JSON: nothing is pickled, so nothing is unpickled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


def save_tree(directory: Path, tree: Any) -> None:
    """Write `tree` as state.json and state.safetensors.

    Args:
        tree: dicts (any plain keys), lists, tuples, tensors, arrays, str, int, float, bool, None.

    Raises:
        TypeError: anything else is inside.
    """
    tensors: dict[str, Tensor] = {}
    plain = _pack(tree, tensors)
    save_file(tensors, directory / "state.safetensors")
    (directory / "state.json").write_text(json.dumps(plain), encoding="utf-8")


def load_tree(directory: Path) -> Any:
    """Return what `save_tree` wrote; tensors on the CPU."""
    tensors = load_file(directory / "state.safetensors")
    return _unpack(json.loads((directory / "state.json").read_text(encoding="utf-8")), tensors)


def _pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, np.ndarray):
        wide = value.astype(np.int64) if value.dtype.kind == "u" and value.dtype != np.uint8 else value
        return {"array": _pack(torch.from_numpy(wide.copy()), tensors)["tensor"], "dtype": value.dtype.str}
    if isinstance(value, Tensor):
        key = f"{len(tensors):06d}"
        tensors[key] = value.detach().cpu().contiguous().clone()  # cloned: safetensors refuses shared storage
        return {"tensor": key}
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
        return tensors[value["array"]].numpy().astype(np.dtype(value["dtype"]))
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "tuple" in value:
        return tuple(_unpack(item, tensors) for item in value["tuple"])
    return {_unpack(k, tensors): _unpack(v, tensors) for k, v in value["dict"]}
