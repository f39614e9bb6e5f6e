"""Read the header of a safetensors file: which tensors it contains, and where.

Read by hand, because the library does not tell where a tensor is in the file, and `peft validate` must not load torch.
Nothing else in this package reads headers.

Format: 8 bytes of header length (little endian), a JSON header of {name: {dtype, shape, data_offsets}}, then the data,
contiguous and without holes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

LENGTH_BYTES = 8
"""Bytes in front of the header, which hold its length."""
LONGEST = 100_000_000
"""Bytes that a header has at most, as in the safetensors library."""


@dataclass(frozen=True)
class HeaderEntry:
    """What a header says of one tensor.

    Args:
        dtype: as the format names it, such as `BF16`.
        shape: of the tensor.
        start, end: positions in the file of its first byte and of the byte behind its last.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        """Size in the file."""
        return self.end - self.start


def header_bytes(file: Path) -> bytes:
    """Return the JSON header of a safetensors file as it is stored.

    Raises:
        ValueError: the file is too short for the header that it announces, or the header is longer than `LONGEST`.
    """
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(LENGTH_BYTES), "little")
        if not 0 < length <= file.stat().st_size - LENGTH_BYTES:
            raise ValueError("the header is longer than the file")
        if length > LONGEST:
            raise ValueError(f"the header is longer than {LONGEST:,} bytes")
        return stream.read(length)


def read_header(file: Path) -> dict[str, HeaderEntry]:
    """Return the tensors of a safetensors file by name; their values are not read.

    Raises:
        ValueError: the file is no complete safetensors file.
    """
    text = header_bytes(file)
    first, size = LENGTH_BYTES + len(text), file.stat().st_size
    try:
        header: Any = json.loads(text)
    except RecursionError:
        raise ValueError("the header is not of the format: nested too deeply") from None
    if not isinstance(header, dict):
        raise ValueError("the header is not of the format: no JSON object")
    return {name: _entry(name, entry, first, size) for name, entry in header.items() if name != "__metadata__"}


def _entry(name: str, entry: Any, first: int, size: int) -> HeaderEntry:
    """Return what a header says of one tensor, whose bytes lie between `first` and `size` in the file."""
    if not isinstance(entry, dict):
        raise ValueError(f"the header is not of the format: {name} is no object")
    dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or not _counts(shape) or not _counts(offsets) or len(offsets) != 2:
        raise ValueError(f"the header is not of the format: dtype, shape and data_offsets of {name}")
    start, end = (first + offset for offset in offsets)
    if not first <= start <= end <= size:
        raise ValueError(f"{name} does not fit into the file")
    return HeaderEntry(dtype, tuple(shape), start, end)


def _counts(value: Any) -> TypeGuard[list[int]]:
    """Tell whether a value is a list of whole numbers that are not negative."""
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)
