"""Reading and writing safetensors one tensor at a time, through plain file input and output.

A memory map would count every page it touched against the process until the file is closed; here the memory in use is
that of the tensor at hand, whatever the size of the model. Format: 8 bytes of header length (little endian), a JSON
header of {name: {dtype, shape, data_offsets}}, then the data, contiguous and without holes.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import torch
from torch import Tensor

from peftcli.errors import UserError

_DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}

CHUNK_BYTES = 4 * 2**20
"""What is copied or converted at a time where no rule needs the whole tensor."""


class Source(Protocol):
    """A tensor of the base, wherever it is."""

    @property
    def name(self) -> str:
        """Its name in the checkpoint."""

    @property
    def dtype(self) -> torch.dtype:
        """Its type."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""

    @property
    def numel(self) -> int:
        """Number of elements."""

    def read_float32(self) -> Tensor:
        """Return the whole tensor in float32, in memory of its own."""

    def chunks(self) -> Iterator[Tensor]:
        """Yield the elements in order, flat, a few megabytes at a time."""


@dataclass(frozen=True)
class Stored:
    """One tensor in a file.

    Args:
        name: its key.
        file: where it is.
        dtype: its type.
        shape: its shape.
        offset: position of its first byte in the file.
    """

    name: str
    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in the file."""
        return self.numel * self.dtype.itemsize

    def read_float32(self) -> Tensor:
        """Return the whole tensor in float32, in pages of its own that go back to the system with it.

        The allocator would keep blocks of up to 32 MiB for later, and a conversion would need both types at once.
        """
        if self.numel == 0:
            return torch.empty(self.shape)
        whole = torch.frombuffer(mmap.mmap(-1, 4 * self.numel), dtype=torch.float32)
        start = 0
        for chunk in self.chunks():
            whole[start : start + len(chunk)] = chunk
            start += len(chunk)
        return whole.view(self.shape)

    def chunks(self) -> Iterator[Tensor]:
        """Yield the elements in order, flat, at most `CHUNK_BYTES` at a time."""
        step = max(1, CHUNK_BYTES // self.dtype.itemsize)
        with open(self.file, "rb") as stream:
            for start in range(0, self.numel, step):
                yield self._at(stream, start, min(step, self.numel - start))

    def _at(self, stream: BufferedReader, start: int, count: int) -> Tensor:
        if count == 0:
            return torch.empty(0, dtype=self.dtype)
        buffer = bytearray(count * self.dtype.itemsize)
        stream.seek(self.offset + start * self.dtype.itemsize)
        if stream.readinto(buffer) != len(buffer):
            raise UserError(f"{self.file} ends inside {self.name}", suggestion="copy or download the model again")
        return torch.frombuffer(buffer, dtype=self.dtype)


def read_header(file: Path) -> dict[str, Stored]:
    """Return the tensors of a safetensors file by name, without reading them.

    Raises:
        UserError: the file is no complete safetensors file, or holds a type that is not known here.
    """
    size = file.stat().st_size
    try:
        with open(file, "rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 0 < length <= size - 8:
                raise ValueError("the header is longer than the file")
            header: dict[str, Any] = json.loads(stream.read(length))
        found = {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            start, end = entry["data_offsets"]
            stored = Stored(name, file, _DTYPES[entry["dtype"]], tuple(entry["shape"]), 8 + length + start)
            if end - start != stored.nbytes or 8 + length + end > size:
                raise ValueError(f"{name} does not fit into the file")
            found[name] = stored
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file} is no complete safetensors file ({error})", suggestion="copy or download the model again"
        ) from error
    return found


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
        return ["model.safetensors"]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def write_file(path: Path, tensors: list[Planned], data: Mapping[str, Iterator[Tensor]]) -> None:
    """Write one safetensors file, tensor by tensor, and flush it to the disk.

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
        stream.write(len(text).to_bytes(8, "little") + text)
        for tensor in ordered:
            written = sum(_write(stream, piece, tensor) for piece in data[tensor.name])
            if written != tensor.nbytes:
                raise ValueError(f"{tensor.name}: {written} bytes were made of {tensor.nbytes}")
        stream.flush()
        os.fsync(stream.fileno())


def _write(stream: BinaryIO, piece: Tensor, tensor: Planned) -> int:
    if piece.dtype != tensor.dtype:
        raise ValueError(f"{tensor.name}: made as {piece.dtype}, planned as {tensor.dtype}")
    data = piece.contiguous().view(-1).view(torch.uint8)
    stream.write(data.numpy().data)
    return data.numel()
