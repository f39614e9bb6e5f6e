"""Options of a merge, checked before anything is opened."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from peftcli.errors import UserError
from peftcli.models.load.dtypes import dtype_named

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_SPARE_BYTES = 64 * 2**20
"""Disk space beside the weights: tokenizer, card, the file system's own."""


@dataclass(frozen=True)
class MergeOptions:
    """How the result is written.

    Args:
        output: directory that does not exist yet.
        dtype: of the result, None for the base's own.
        limit: bytes of a weight file.
        verify, use_alone, requantize: as in `merge_run`.
    """

    output: Path
    dtype: torch.dtype | None
    limit: int
    verify: bool
    use_alone: bool
    requantize: bool


def merge_options(
    output: Path, dtype: str | None, max_shard_size: str, *, verify: bool, use_alone: bool, requantize: bool = False
) -> MergeOptions:
    """Return the options that the user gave, checked.

    Args:
        output, dtype, max_shard_size, verify, use_alone, requantize: as in `merge_run`.

    Raises:
        UserError: a size or type that is none, or an output that exists.
    """
    refuse_existing(Path(output))
    return MergeOptions(
        Path(output), output_dtype(dtype), parse_size(max_shard_size), verify, verify and use_alone, requantize
    )


def output_dtype(name: str | None) -> torch.dtype | None:
    """Return the type that `--dtype` names; None keeps the base's.

    Raises:
        UserError: it is none of auto, float32, bfloat16, float16.
    """
    if name in (None, "auto"):
        return None
    if name not in ("float32", "bfloat16", "float16"):
        raise UserError(f"--dtype {name} is none of: auto, float32, bfloat16, float16")
    return dtype_named(name)


def parse_size(text: str) -> int:
    """Return the bytes of a size such as 5GB, 500MB or 2GiB.

    Raises:
        UserError: it is none.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?B|)\s*", text.upper())
    size = int(float(found.group(1)) * _UNITS[found.group(2) if found.group(2) != "B" else ""]) if found else 0
    if size <= 0:
        raise UserError(f"--max-shard-size {text!r} is not a size", suggestion="write it as 5GB, 500MB or 2GiB")
    return size


def refuse_existing(output: Path) -> None:
    """Refuse an output that is there already.

    Raises:
        UserError: it exists.
    """
    if output.exists():
        raise UserError(f"{output} exists already", suggestion="choose another --output, or remove it first")


def refuse_small_disk(output: Path, size: int) -> None:
    """Refuse a disk that cannot hold the result.

    Raises:
        UserError: with what is needed and what is free.
    """
    place = output.absolute().parent
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if not os.access(place, os.W_OK):
        raise UserError(f"{place} cannot be written to", suggestion="choose another --output")
    if free < size + _SPARE_BYTES:
        raise UserError(
            f"the merged model needs {(size + _SPARE_BYTES) / 1e9:.1f} GB, and {place} has {free / 1e9:.1f} GB free",
            suggestion="free some space, choose an --output on another disk, or a smaller --dtype",
        )
