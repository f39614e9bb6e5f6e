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
from typing import Any

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
    size = file.stat().st_size
    header: Any = json.loads(text)
    found = {}
    try:
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            start, end = (LENGTH_BYTES + len(text) + int(offset) for offset in entry["data_offsets"])
            if not LENGTH_BYTES + len(text) <= start <= end <= size:
                raise ValueError(f"{name} does not fit into the file")
            found[name] = HeaderEntry(str(entry["dtype"]), tuple(entry["shape"]), start, end)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"the header is not of the format: {error!r}") from error
    return found
