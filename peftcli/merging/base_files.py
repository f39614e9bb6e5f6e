"""The tensors of a base model: in safetensors files, found as transformers finds them, or held in memory (GGUF)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from peftcli.errors import UserError
from peftcli.merging.tensor_files import CHUNK_BYTES, Source, read_header
from peftcli.models.load.model_files import ModelSource

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


def base_directory(source: ModelSource, revision: str | None) -> Path:
    """Return the directory with a base's files; the hub's cached copy for a hub id.

    Raises:
        UserError: the hub's copy is not in the cache and cannot be fetched.
    """
    if source.path is not None:
        return source.path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        found = snapshot_download(
            source.name, revision=revision, allow_patterns=["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]
        )
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise UserError(
            f"the base model {source.name} is not in the cache and the hub cannot be reached",
            suggestion="go online, or name a local copy with --base",
        ) from error
    return Path(found)


def stored_tensors(directory: Path) -> dict[str, Source]:
    """Return the tensors of a model directory by their name in the file.

    Raises:
        UserError: there are no safetensors files, or some of them are missing or damaged.
    """
    if (directory / _SINGLE).is_file():
        return dict(read_header(directory / _SINGLE))
    if not (directory / _INDEX).is_file():
        raise UserError(
            f"{directory} has neither {_SINGLE} nor {_INDEX}",
            suggestion="merging reads safetensors; save the base model in that format and name it with --base",
        )
    names: dict[str, str] = json.loads((directory / _INDEX).read_text(encoding="utf-8"))["weight_map"]
    missing = sorted({file for file in names.values() if not (directory / file).is_file()})
    if missing:
        raise UserError(
            f"{directory} lacks {len(missing)} of its weight files, such as {missing[0]}",
            suggestion="copy or download the model again",
        )
    found: dict[str, Source] = {}
    for file in sorted(set(names.values())):
        found.update(read_header(directory / file))
    absent = sorted(set(names) - set(found))
    if absent:
        raise UserError(
            f"{directory}: {absent[0]} is in {_INDEX} but in no file", suggestion="download the model again"
        )
    return {name: stored for name, stored in found.items() if name in names}


@dataclass(frozen=True)
class Held:
    """One tensor in memory, as a source: what a GGUF file's model was dequantised to."""

    name: str
    tensor: Tensor

    @property
    def dtype(self) -> torch.dtype:
        """Its type."""
        return self.tensor.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return tuple(self.tensor.shape)

    @property
    def numel(self) -> int:
        """Number of elements."""
        return self.tensor.numel()

    def read_float32(self) -> Tensor:
        """Return a copy in float32."""
        return self.tensor.detach().to(torch.float32, copy=True)

    def chunks(self) -> Iterator[Tensor]:
        """Yield the elements in order, flat, at most `CHUNK_BYTES` at a time."""
        flat = self.tensor.detach().reshape(-1)
        step = max(1, CHUNK_BYTES // flat.element_size())
        for start in range(0, flat.numel(), step):
            yield flat[start : start + step]


def held_tensors(state: Mapping[str, Tensor]) -> dict[str, Source]:
    """Return a live model's tensors as sources; of tied ones the first name."""
    seen: set[int] = set()
    found: dict[str, Source] = {}
    for name, tensor in state.items():
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            found[name] = Held(name, tensor)
    return found
