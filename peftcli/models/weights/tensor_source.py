"""Read a model's tensors one at a time, from safetensors files or from a model in memory (GGUF).

A memory map would count every page it touched against the process until the file is closed; here the memory in use is
that of the tensor at hand, whatever the size of the model.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from peftcli.errors import UserError
from peftcli.models.weights.tensor_header import read_header
from peftcli.models.weights.weight_damage import wrong_start

STORED_DTYPES: dict[str, torch.dtype] = {
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
"""The format's names of types."""

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

    def chunks(self, first: int = 0, last: int | None = None) -> Iterator[Tensor]:
        """Yield the elements in order, flat, at most `CHUNK_BYTES` at a time.

        Args:
            first: number of the first element.
            last: number of the element behind the last; None is the tensor's end.
        """
        step = max(1, CHUNK_BYTES // self.dtype.itemsize)
        end = self.numel if last is None else last
        with open(self.file, "rb") as stream:
            for start in range(first, end, step):
                yield self._at(stream, start, min(step, end - start))

    @torch.no_grad()
    def read_into(self, part: Tensor, region: tuple[slice, ...], dtype: torch.dtype) -> None:
        """Read a region of the tensor, whole rows without the others.

        Args:
            part: takes the values, of the region's shape; on any device and of any type.
            region: one slice for each dimension.
            dtype: that the values have before they become `part`'s.
        """
        if part.numel() == 0:
            return
        rows = all((cut.start, cut.stop) == (0, size) for cut, size in zip(region[1:], self.shape[1:], strict=True))
        if not rows or not part.is_contiguous():
            part.copy_(self.read(dtype)[region])
            return
        flat, width = part.view(-1), math.prod(self.shape[1:])
        first, start = (region[0].start * width if region else 0), 0
        for chunk in self.chunks(first, first + flat.numel()):
            flat[start : start + len(chunk)] = chunk.to(dtype)
            start += len(chunk)

    def read(self, dtype: torch.dtype) -> Tensor:
        """Return the whole tensor in another type, or its own, in memory of its own."""
        whole = torch.empty(self.shape, dtype=dtype)
        self.read_into(whole, tuple(slice(0, size) for size in self.shape), dtype)
        return whole

    def _at(self, stream: BufferedReader, start: int, count: int) -> Tensor:
        if count == 0:
            return torch.empty(0, dtype=self.dtype)
        buffer = bytearray(count * self.dtype.itemsize)
        stream.seek(self.offset + start * self.dtype.itemsize)
        if stream.readinto(buffer) != len(buffer):
            raise UserError(f"{self.file} ends inside {self.name}", suggestion="copy or download the model again")
        return torch.frombuffer(buffer, dtype=self.dtype)


def tensors_of_file(file: Path) -> dict[str, Stored]:
    """Return the tensors of a safetensors file by name, without reading them.

    Raises:
        UserError: the file is no complete safetensors file, or holds a type that is not known here.
    """
    found = {}
    wrong = wrong_start(file)
    if wrong is not None:
        raise UserError(f"{file} {wrong[0]}", suggestion=wrong[1])
    try:
        for name, entry in read_header(file).items():
            if entry.dtype not in STORED_DTYPES:
                raise ValueError(f"{name} is of the type {entry.dtype}")
            stored = Stored(name, file, STORED_DTYPES[entry.dtype], entry.shape, entry.start)
            if entry.nbytes != stored.nbytes:
                raise ValueError(f"{name} does not fit into the file")
            found[name] = stored
    except ValueError as error:
        raise UserError(
            f"{file} is no complete safetensors file ({error})", suggestion="copy or download the model again"
        ) from error
    return found


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
