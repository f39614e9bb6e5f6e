"""Rows from standard input, or from a pipe, as a file that can be read like any other."""

from __future__ import annotations

import json
import stat
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from peftcli.console.options import note, refuse_nothing
from peftcli.data.read.compressed import SNIFF, refuse_binary
from peftcli.errors import UserError

NAMES = ("-", "/dev/stdin")
_PACKED = {b"\x1f\x8b": "zcat", b"BZh": "bzcat", b"\xfd7zXZ": "xzcat", b"\x28\xb5\x2f\xfd": "zstdcat"}
_PARQUET = b"PAR1"


@contextmanager
def rows_file(data: str, option: str) -> Iterator[str]:
    """Yield the file of rows that an option names: itself, or for standard input and pipes a copy while inside.

    Args:
        data: what the option was given: `-` and /dev/stdin are standard input.

    Raises:
        UserError: standard input is empty or compressed; errors about the copy name standard input instead.
    """
    if data not in NAMES and not _is_pipe(Path(data)):
        yield data
        return
    title = "standard input" if data in NAMES else data
    content = _content(data, option, title)
    if not content.strip():
        raise UserError(f"{option}: {title} is empty", suggestion="write rows to it: cat rows.jsonl | peft ...")
    suffix = _suffix(content, option, title)
    with tempfile.TemporaryDirectory(prefix="peft-") as directory:
        file = Path(directory) / f"rows{suffix}"
        file.write_bytes(content)
        if suffix not in (".jsonl", ".json"):
            note(f"{title} is read as {suffix}")
        with called(str(file), title):
            yield str(file)


def text_lines(stream: TextIO) -> Iterator[str]:
    """Yield the lines of standard input, without a byte order mark before the first one.

    Each line is decoded by itself, so that those before a broken one are not lost; a stream of text is taken as it is.

    Raises:
        UserError: a line is not in the encoding of the stream.
    """
    for number, line in enumerate(getattr(stream, "buffer", stream), 1):
        try:
            text = line.decode(stream.encoding) if isinstance(line, bytes) else line
        except UnicodeDecodeError as error:
            raise UserError(
                f"line {number} of standard input is not {stream.encoding}: byte {error.start + 1} of it",
                suggestion=f"convert it first: iconv -f ENCODING -t {stream.encoding} FILE | peft ...",
            ) from error
        yield text.removeprefix("\ufeff") if number == 1 else text


@contextmanager
def texts_file(texts: Sequence[str]) -> Iterator[str]:
    """Yield a file with a row for each text of `--text`; errors name the option instead.

    Raises:
        UserError: a text is empty.
    """
    for text in texts:
        refuse_nothing(text, "--text")
    with tempfile.TemporaryDirectory(prefix="peft-") as directory:
        file = Path(directory) / "texts.jsonl"
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
        with called(str(file), "--text"):
            yield str(file)


@contextmanager
def called(file: str, title: str) -> Iterator[None]:
    """Let errors about a copy name what it is a copy of."""
    try:
        yield
    except UserError as error:
        raise UserError(
            replace(
                problem,
                file=title if problem.file == file else problem.file,
                message=problem.message.replace(file, title),
            )
            for problem in error.problems
        ) from error


def _content(data: str, option: str, title: str) -> bytes:
    """Return all bytes of standard input, or of a pipe.

    Raises:
        UserError: it cannot be read, or begins as no rows do: /dev/zero, which has no end, say.
    """
    with ExitStack() as stack:
        try:
            stream = sys.stdin.buffer if data in NAMES else stack.enter_context(open(data, "rb"))
            first = stream.read(SNIFF)
            if not first.startswith((*_PACKED, _PARQUET)):
                refuse_binary(first, title)
            return first if len(first) < SNIFF else first + stream.read()  # a terminal would have to end it twice
        except OSError as error:
            remedy = "name a file of rows, or a pipe: cat rows.jsonl | peft ..."
            raise UserError(
                f"{option}: {title} cannot be read: {error.strerror or error}", suggestion=remedy
            ) from error


def _is_pipe(path: Path) -> bool:
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # not there, a hub id, or too long a name
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or stat.S_ISSOCK(mode)


def _suffix(content: bytes, option: str, title: str) -> str:
    """Return the suffix of the format that the first bytes show.

    Raises:
        UserError: the rows are compressed.
    """
    for magic, program in _PACKED.items():
        if content.startswith(magic):
            raise UserError(
                f"{option}: the rows from {title} are compressed", suggestion=f"unpack them first: {program} FILE | ..."
            )
    if content.startswith(_PARQUET):
        return ".parquet"
    first, _, rest = content.lstrip(b"\xef\xbb\xbf \t\r\n").partition(b"\n")
    if first.startswith(b"["):
        return ".json"
    if first.startswith(b"{"):
        return ".jsonl" if first.rstrip().endswith(b"}") or not rest.strip() else ".json"
    if b"\t" in first:
        return ".tsv"
    return ".csv" if b"," in first else ".txt"
