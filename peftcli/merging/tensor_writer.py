"""Write safetensors files tensor by tensor, in shards, through plain file output.

Written by hand, because the safetensors library needs all tensors of a file in memory at once.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from peftcli.errors import VerificationFailed
from peftcli.models.weights.tensor_source import STORED_DTYPES
from peftcli.models.weights.weight_index import INDEX, SINGLE

_BLOCK = 2**20
_NAMES = {dtype: name for name, dtype in STORED_DTYPES.items()}


@dataclass(frozen=True)
class Planned:
    """A tensor to be written: its name, type and shape."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def shards(tensors: list[Planned], limit: int) -> list[list[Planned]]:
    """Split tensors, in their order, into files of at most `limit` bytes; a larger tensor has a file of its own."""
    groups: list[list[Planned]] = []
    size = 0
    for tensor in tensors:
        if not groups or size + tensor.nbytes > limit:
            groups.append([])
            size = 0
        groups[-1].append(tensor)
        size += tensor.nbytes
    return groups or [[]]


def shard_names(count: int) -> list[str]:
    """Return the file names that transformers looks for."""
    if count == 1:
        return [SINGLE]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def write_file(path: Path, tensors: list[Planned], data: Mapping[str, Iterator[Tensor]]) -> int:
    """Write one safetensors file, tensor by tensor, and flush it to the disk; return the CRC-32 of what it holds.

    Args:
        path: of the new file.
        tensors: what it holds.
        data: for each name, its elements in order, in pieces of any size, in the planned type.

    Raises:
        ValueError: the pieces of a tensor are not as many elements as its shape, or of another type.
    """
    ordered = sorted(tensors, key=lambda tensor: (-tensor.dtype.itemsize, tensor.name))  # keeps every tensor aligned
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in ordered:
        header[tensor.name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as stream:
        start = len(text).to_bytes(8, "little") + text
        stream.write(start)
        total = zlib.crc32(start)
        for tensor in ordered:
            written = 0
            for piece in data[tensor.name]:
                numbers = _bytes_of(piece, tensor)
                stream.write(numbers)
                total = zlib.crc32(numbers, total)
                written += len(numbers)
            if written != tensor.nbytes:
                raise ValueError(f"{tensor.name}: {written} bytes were made of {tensor.nbytes}")
        stream.flush()
        os.fsync(stream.fileno())
    return total


def _bytes_of(piece: Tensor, tensor: Planned) -> memoryview:
    if piece.dtype != tensor.dtype:
        raise ValueError(f"{tensor.name}: made as {piece.dtype}, planned as {tensor.dtype}")
    found: memoryview = piece.contiguous().view(-1).view(torch.uint8).numpy().data
    return found


def require_written(directory: Path, sums: Mapping[str, int], output: Path) -> None:
    """Read files that `write_file` wrote again.

    Args:
        directory: holds them.
        sums: what `write_file` returned, by the file's name.
        output: the directory as the user knows it.

    Raises:
        VerificationFailed: one of them holds something else than what was written to it.
    """
    for name, expected in sums.items():
        total = 0
        with (directory / name).open("rb") as file:
            while block := file.read(_BLOCK):
                total = zlib.crc32(block, total)
        if total != expected:
            raise VerificationFailed(
                f"{name} does not hold what was written to it; {output} was not written\n    "
                "look at the disk or the network mount, and merge to another one"
            )


def write_index(directory: Path, names: dict[str, str], size: int) -> None:
    """Write the index of a sharded model: parameter name to file."""
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(names.items()))}
    (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
