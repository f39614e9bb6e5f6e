"""Read and write the JSON and safetensors files of an adapter directory, of this project or of another library.

Imports torch only inside the functions that need it: `format.py` uses the JSON functions and loads no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftcli.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
SIDECAR = "peftcli.json"
CARD = "README.md"
LARGEST = 1e6
"""What a weight of an adapter may be at most where nothing else tells whether its file is whole: one bit of a number's
exponent makes it larger than that, or infinite.
"""


def json_ready(value: Any) -> Any:
    """Return plain data: tuples become lists, sets sorted lists."""
    if isinstance(value, Mapping):
        return {str(key): json_ready(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(json_ready(item) for item in value)
    if isinstance(value, (list, tuple)):
        return [json_ready(item) for item in value]
    return value


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write readable JSON with sorted keys, as HF peft does."""
    path.write_text(json.dumps(json_ready(data), indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        UserError: there is no such file, or it is no JSON object.
    """
    from peftcli.typed_record import read_object  # pydantic: the commands' help needs this module, and no pydantic

    if not path.is_file():
        raise UserError(
            f"{path.parent} holds no adapter: {path.name} is missing",
            suggestion="name a run directory, or a directory with adapter_config.json and adapter_model.safetensors",
        )
    return read_object(path, suggestion="copy or download the adapter again")


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors to a safetensors file; each is copied, because the format refuses shared memory."""
    from safetensors.torch import save_file

    own = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    save_file(own, path, metadata={"format": "pt"})


def read_tensors(path: Path, *, recorded: bool = False) -> dict[str, Tensor]:
    """Read a safetensors file onto the CPU.

    Args:
        path: the file.
        recorded: there is a hash to compare it with; without one, numbers that no training gives are refused, too.

    Raises:
        UserError: it is missing (a pickled one is never read) or damaged, or holds NaN, infinity, or numbers beyond
            `LARGEST`.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from peftcli.layers.finite_tensors import first_beyond, first_not_finite

    if not path.is_file():
        pickled = path.with_name("adapter_model.bin")
        if not pickled.is_file():
            raise UserError(f"{path} cannot be read: it is missing", suggestion="copy it back, or train again")
        raise UserError(
            f"{path} is missing, and {pickled.name} is a pickle, which can run code",
            suggestion="save the adapter again with safe_serialization=True",
        )
    try:
        tensors = dict(load_file(path))
    except SafetensorError as error:
        raise UserError(f"{path} is damaged: {error}", suggestion="copy the file again, or train again") from None
    broken = first_not_finite(tensors)
    if broken is not None:
        reason = f"{path} holds numbers that are not finite (NaN or infinity), first in {broken}"
        raise UserError(reason, suggestion="a diverged training or a damaged file: train again, or copy it again")
    huge = None if recorded else first_beyond(tensors, LARGEST)
    if huge is not None:
        reason = f"{path} holds numbers beyond {LARGEST:,.0f}, first in {huge}: no training gives such weights"
        raise UserError(reason, suggestion="the file is damaged: copy or download it again")
    return tensors
