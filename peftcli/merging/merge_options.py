"""Options of a merge, checked before anything is opened."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from peftcli.errors import UserError
from peftcli.models.load.dtypes import dtype_named
from peftcli.record.shown_numbers import bytes_of

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
        UserError: a size or type that is none, an output that exists, or quantising without the comparison that tells
            what it costs.
    """
    if requantize and not verify:
        raise UserError(
            "--no-verify does not go with --requantize, which measures on the run's rows what the 4 bits cost",
            suggestion="leave one of the two out",
        )
    refuse_existing(Path(output))
    return MergeOptions(
        Path(output),
        output_dtype(dtype),
        bytes_of("--max-shard-size", max_shard_size),
        verify,
        verify and use_alone,
        requantize,
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


def refuse_existing(output: Path) -> None:
    """Refuse an output that is there already.

    Raises:
        UserError: it exists.
    """
    if output.exists():
        raise UserError(f"{output} exists already", suggestion="choose another --output, or remove it first")


def refuse_small_disk(output: Path, size: int, smaller: str = "--dtype") -> None:
    """Refuse a disk that cannot hold the result.

    Args:
        smaller: the option that makes it smaller.

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
            suggestion=f"free some space, choose an --output on another disk, or a smaller {smaller}",
        )
