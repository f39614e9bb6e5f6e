"""One source, found: its files, how their rows are read, and a hash of their content."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peftcli.data.read.compressed import bare_suffix
from peftcli.data.read.json_files import read_json
from peftcli.data.read.records import Record
from peftcli.data.read.text_files import Rows, read_csv, read_jsonl, read_tsv, read_txt
from peftcli.shown_text import some_of

SAMPLES, SAMPLE_BYTES = 16, 65536
"""Pieces of a file of a stream by which a change is noticed: the first and last bytes, and others spread between."""

Reader = Callable[[Path, str], Rows]


def _read_parquet(path: Path, name: str) -> Rows:
    from peftcli.data.read.arrow_files import (
        read_parquet,  # pyarrow takes 0.1 s to import: only when such a file is read
    )

    return read_parquet(path, name)


def _read_arrow(path: Path, name: str) -> Rows:
    from peftcli.data.read.arrow_files import read_arrow

    return read_arrow(path, name)


READERS: dict[str, Reader] = {
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".txt": read_txt,
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
}


@dataclass(frozen=True)
class SourceFiles:
    """One source of a recipe, found: how to read its rows, and what its content is.

    Args:
        title: as the recipe names it.
        files: what is read, in order.
        reader: rows of one file; takes the path and the name for messages.
        kind: `files`, `folders`, `dataset` (a saved one) or `hub`.
        base: folder of the class folders, or of the saved data set.
        class_names: column to names, where a data set holds numbers of named classes.
        dataset: a data set of the `datasets` library in arrow format.
        part: which part of the files it is: configuration and split, or the name of a list in a JSON object.
        notes: what a user should know of how the files were chosen.
    """

    title: str
    files: tuple[Path, ...]
    reader: Reader | None
    kind: str = "files"
    base: Path | None = None
    class_names: Mapping[str, Any] = field(default_factory=dict)
    dataset: Any = None
    part: str = ""
    notes: tuple[str, ...] = ()

    def rows(self, notes: list[str] | None = None) -> Rows:
        """Yield the rows of every file in order; `notes` receives what a user should know of how they were read."""
        if self.kind == "folders":
            from peftcli.data.read.folders import read_folders

            assert self.base is not None  # resolve_source gives class folders their base
            yield from read_folders(self.base, self.files, notes)
            return
        if self.kind == "dataset":
            from peftcli.data.read.arrow_files import read_many

            yield from read_many(self.files, self.title, self.class_names)
            return
        if self.kind == "hub":
            from peftcli.data.read.arrow_files import read_dataset

            yield from read_dataset(self.dataset, self.title, self.class_names)
            return
        empty = []
        for path in self.files:
            row = None
            for row in self._read(path):
                yield row
            if row is None:
                empty.append(path)
        if notes is not None and 0 < len(empty) < len(self.files):
            hold = "holds no row" if len(empty) == 1 else "hold no rows"
            notes.append(f"{len(empty)} of {len(self.files)} files {hold}: {some_of(empty, 3)}")

    def _read(self, path: Path) -> Rows:
        if self.part and bare_suffix(path) == ".json":
            return read_json(path, str(path), self.part)
        reader = self.reader or READERS[bare_suffix(path)]
        return reader(path, str(path))

    def fingerprint(self) -> str:
        """Return a hash of every byte, and of names below the base; where the files lie does not count."""
        total = hashlib.blake2b(digest_size=16)
        total.update(f"{self.kind} {self.part} {sorted(self.class_names.items())}".encode())
        if self.dataset is not None and not self.files:  # a data set that was never on disk
            total.update(repr([row.values for row in self.rows() if isinstance(row, Record)]).encode())
        for path in self.files:
            named = path.relative_to(self.base).as_posix() if self.base else bare_suffix(path)
            total.update(f"{named}\0{path.stat().st_size}\0".encode())
            with open(path, "rb") as handle:
                while block := handle.read(1 << 20):
                    total.update(block)
        return total.hexdigest()

    def state(self) -> list[tuple[int, ...]]:
        """Return what the file system says of each file; it differs after a file was written, put back or replaced."""
        found = [path.stat() for path in self.files]
        return [(one.st_dev, one.st_ino, one.st_size, one.st_mtime_ns, one.st_ctime_ns) for one in found]

    def sampled_fingerprint(self) -> str | None:
        """Return a hash of names, sizes and sampled bytes, at the same cost for files of any size.

        None for a source that is not on disk.
        """
        if not self.files:
            return None
        total = hashlib.blake2b(f"{self.kind} {self.part}".encode(), digest_size=16)
        for path in self.files:
            size = path.stat().st_size
            total.update(f"{path.name}\0{size}\0".encode())
            with open(path, "rb") as handle:
                for part in range(SAMPLES):
                    handle.seek(max(0, (size - SAMPLE_BYTES) * part // (SAMPLES - 1)))
                    total.update(handle.read(SAMPLE_BYTES))
        return total.hexdigest()

    @property
    def format(self) -> str | None:
        """The format of the rows where the kind of source decides it: that of class folders."""
        return "folders" if self.kind == "folders" else None

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in self.files)
