"""Class folders: one folder a class, one text file a row."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from pathlib import Path

from peftcli.data.read.compressed import LONGEST_LINE, read_bytes
from peftcli.data.read.records import BadRow, Record, excerpt
from peftcli.data.read.text_files import Rows


def read_folders(base: Path, files: Sequence[Path], notes: list[str] | None = None) -> Rows:
    """Yield a row for each file: its text, and its folder's name as the label.

    A whole document in the encoding of old Windows corpora is still text: it is read as such and said in `notes`,
    because a class folder has no header or syntax by which a mistake would show.
    """
    other: list[str] = []
    for path in files:
        name = str(path)
        raw = read_bytes(path, name, LONGEST_LINE).removeprefix(codecs.BOM_UTF8)
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            try:
                text = raw.decode("cp1252")
            except UnicodeDecodeError:
                message = f"not UTF-8: byte 0x{raw[error.start]:02x} at position {error.start + 1}"
                yield BadRow(name, 1, message, excerpt(raw.decode("latin-1")), "UTF-8 text")
                continue
            other.append(path.relative_to(base).as_posix())
        if "\0" in text:
            yield BadRow(name, 1, "the file is binary, not text", excerpt(text), "UTF-8 text")
            continue
        yield Record(name, 1, {"text": text.replace("\r\n", "\n"), "label": path.relative_to(base).parts[0]})
    if other and notes is not None:
        shown = ", ".join(other[:3]) + (", ..." if len(other) > 3 else "")
        notes.append(f"not UTF-8, read as Windows-1252: {len(other)} of {len(files)} files: {shown}")
