"""Open data files, compressed or not, and read their lines as UTF-8 text."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO, cast

from peftcli.errors import Problem, UserError

COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
_BOMS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)
SNIFF = 4096  # bytes looked at to tell text from binary data
BLOCK = 1 << 20  # bytes read at a time
LONGEST_LINE = 64 * 2**20
"""Bytes of a line, of a CSV row, or of a row of a JSON list: 20 times a very long novel. One of them is in memory."""

MOST_EXPANSION = 200
"""Times its compressed size that a file may have: text has 3 to 20 times, a file made to fill the memory over 1,000."""

UNQUESTIONED = 2**30
"""Bytes up to which a compressed file may expand in any case: so many are read in seconds."""

DAMAGE = (EOFError, lzma.LZMAError, zlib.error, OSError, ValueError)
"""What Python and pyarrow raise for a file that cannot be read, or whose compressed stream is damaged."""

_MAGIC = {
    b"\x1f\x8b": ("compressed with gzip", "give it the suffix .gz, or decompress it"),
    b"BZh": ("compressed with bzip2", "give it the suffix .bz2, or decompress it"),
    b"\xfd7zXZ\0": ("compressed with xz", "give it the suffix .xz, or decompress it"),
    b"\x28\xb5\x2f\xfd": ("compressed with zstandard", "give it the suffix .zst, or decompress it"),
    b"PK\x03\x04": ("a zip archive", "unpack it, and name a file inside"),
    b"PAR1": ("a parquet file", "give it the suffix .parquet"),
    b"ARROW1": ("an arrow file", "give it the suffix .arrow"),
}


def bare_suffix(path: Path) -> str:
    """Return a file's suffix without that of its compression: `.jsonl` for rows.jsonl.gz."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def open_bytes(path: Path) -> IO[bytes]:
    """Open a file for reading its uncompressed bytes.

    Raises:
        UserError: the file cannot be opened.
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
            return _open_zstd(path)
        return open(path, "rb")
    except OSError as error:
        raise UserError(Problem(f"cannot be read: {error.strerror or error}", file=str(path))) from error


def read_bytes(path: Path, name: str, most: int) -> bytes:
    """Return the uncompressed bytes of a whole file.

    Raises:
        UserError: it has more than `most` bytes, cannot be read, or its compressed stream is damaged.
    """
    with open_bytes(path) as handle, _readable(path, name):
        compressed, pieces, size = path.stat().st_size, list[bytes](), 0
        while piece := handle.read(BLOCK):
            pieces.append(piece)
            size += len(piece)
            check_expansion(size, compressed, name)
            if size > most:
                text = f"the file has more than {most:,} bytes, and is read as a whole"
                raise UserError(Problem(text, file=name, suggestion="divide it into several files"))
        return b"".join(pieces)


def text_lines(path: Path, name: str, longest: int = -1) -> Iterator[tuple[int, bytes]]:
    """Yield (1-based line number, bytes of the line with its end) of a text file; a UTF-8 BOM is taken off.

    Args:
        longest: bytes that come at once; a longer line comes in several parts. -1 for whole lines.

    Raises:
        UserError: the file is binary or UTF-16, cannot be read, its compressed stream is damaged or expands too much,
            or a whole line is longer than `LONGEST_LINE`.
    """
    with open_bytes(path) as handle:
        number = 1
        try:
            compressed = path.stat().st_size if path.suffix.lower() in COMPRESSED else sys.maxsize
            size = 0
            most = LONGEST_LINE + 1 if longest < 0 else longest
            first = handle.readline(max(most, SNIFF))
            refuse_binary(first[:SNIFF], name)
            for line in chain([first.removeprefix(codecs.BOM_UTF8)], iter(partial(handle.readline, most), b"")):
                size += len(line)
                if size > UNQUESTIONED:
                    check_expansion(size, compressed, name, number)
                if longest < 0 and len(line) > LONGEST_LINE:
                    raise _too_long(name, number)
                if line:
                    yield number, line
                number += line.endswith(b"\n")
        except DAMAGE as error:
            raise _unreadable(path, name, error, number) from error


def check_expansion(size: int, compressed: int, name: str, line: int | None = None) -> None:
    """Refuse what expands as no data does: a compressed bomb.

    Args:
        size, compressed: bytes uncompressed (so far), and in the file.
        line: of the file, if it has lines.

    Raises:
        UserError: the file expands more than `MOST_EXPANSION` times, to more than `UNQUESTIONED` bytes.
    """
    if size > UNQUESTIONED and size > MOST_EXPANSION * compressed:
        text = f"the file expands to more than {MOST_EXPANSION} times its size ({compressed:,} bytes)"
        remedy = "if it is meant to, decompress it yourself and name the result"
        raise UserError(Problem(text, file=name, line=line, suggestion=remedy))


@contextmanager
def _readable(path: Path, name: str) -> Iterator[None]:
    try:
        yield
    except DAMAGE as error:
        raise _unreadable(path, name, error) from error


def _unreadable(path: Path, name: str, error: Exception, line: int | None = None) -> UserError:
    compressed = path.suffix.lower() in COMPRESSED
    what = "the compressed data is damaged" if compressed else "cannot be read"
    remedy = f"it may be cut off, or no {path.suffix} file: copy or download it again" if compressed else None
    return UserError(Problem(f"{what}: {error}", file=name, line=line, suggestion=remedy))


def _too_long(name: str, number: int) -> UserError:
    return UserError(
        Problem(
            f"the line has more than {LONGEST_LINE:,} bytes",
            file=name,
            line=number,
            suggestion="divide the row into several, or check that the file is one of rows and lines",
        )
    )


def refuse_binary(head: bytes, name: str) -> None:
    """Raise a `UserError` when the first bytes of a file are not UTF-8 text."""
    if head.startswith(_BOMS):
        raise UserError(
            Problem("the file is UTF-16 or UTF-32", file=name, suggestion="convert it: iconv -f UTF-16 -t UTF-8")
        )
    for magic, (kind, remedy) in _MAGIC.items():
        if head.startswith(magic) and (b"\0" in head or b"\xef\xbf\xbd" in head.decode(errors="replace").encode()):
            raise UserError(Problem(f"the file is {kind}, not text", file=name, suggestion=remedy))
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


def _open_zstd(path: Path) -> IO[bytes]:
    import pyarrow  # takes 0.1 s to import: only when such a file is read

    return cast("IO[bytes]", io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd")))
