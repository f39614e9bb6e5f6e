"""Open data files, compressed or not, and read their lines as UTF-8 text."""

from __future__ import annotations

import bz2
import codecs
import gzip
import importlib
import lzma
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO, Any, cast

from peftcli.errors import Problem, UserError

COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
_BOMS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)
SNIFF = 4096  # bytes looked at to tell text from binary data


def bare_suffix(path: Path) -> str:
    """Return a file's suffix without that of its compression: `.jsonl` for rows.jsonl.gz."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def open_bytes(path: Path) -> IO[bytes]:
    """Open a file for reading its uncompressed bytes.

    Raises:
        UserError: the file cannot be opened, or its compression needs a package that is not installed.
    """
    suffix = path.suffix.lower()
    try:
        if suffix == ".gz":
            return cast("IO[bytes]", gzip.open(path, "rb"))
        if suffix == ".bz2":
            return bz2.open(path, "rb")
        if suffix == ".xz":
            return lzma.open(path, "rb")
        if suffix == ".zst":
            return _zstd_open()(path)
        return open(path, "rb")
    except OSError as error:
        raise UserError(Problem(f"cannot be read: {error.strerror or error}", file=str(path))) from error


def text_lines(path: Path, name: str, longest: int = -1) -> Iterator[tuple[int, bytes]]:
    """Yield (1-based line number, bytes of the line with its end) of a text file; a UTF-8 BOM is taken off.

    Args:
        longest: bytes that come at once; a longer line comes in several parts. -1 for whole lines.

    Raises:
        UserError: the file is binary, UTF-16, or its compressed stream is damaged.
    """
    with open_bytes(path) as handle:
        try:
            first = handle.readline(max(longest, SNIFF) if longest > 0 else longest)
            refuse_binary(first[:SNIFF], name)
            rest = handle if longest < 0 else iter(partial(handle.readline, longest), b"")
            number = 1
            for line in chain([first.removeprefix(codecs.BOM_UTF8)], rest):
                if line:
                    yield number, line
                number += line.endswith(b"\n")
        except (EOFError, lzma.LZMAError, zlib.error, OSError, ValueError) as error:
            raise UserError(Problem(f"the compressed data is damaged: {error}", file=name)) from error


def refuse_binary(head: bytes, name: str) -> None:
    """Raise a `UserError` when the first bytes of a file are not UTF-8 text."""
    if head.startswith(_BOMS):
        raise UserError(
            Problem("the file is UTF-16 or UTF-32", file=name, suggestion="convert it: iconv -f UTF-16 -t UTF-8")
        )
    if b"\0" in head:
        raise UserError(Problem("the file is binary, not text", file=name, suggestion="check the path and its suffix"))


def decode(raw: bytes) -> str:
    """Return UTF-8 bytes as text.

    Raises:
        ValueError: they are not UTF-8; the message names the byte and its position.
    """
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = raw[error.start]
        raise ValueError(f"not UTF-8: byte 0x{byte:02x} at position {error.start + 1} of the line") from error


def _zstd_open() -> Callable[[Path], IO[bytes]]:
    """Return a function that opens a zstandard file, from Python 3.14's own module or the zstandard package."""
    for module, opener in (("compression.zstd", "open"), ("zstandard", "open")):
        try:
            function: Any = getattr(importlib.import_module(module), opener)
        except ImportError:
            continue
        return lambda path: cast("IO[bytes]", function(path, "rb"))
    raise UserError(".zst files need the package zstandard", suggestion="pip install zstandard")
