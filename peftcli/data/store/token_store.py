"""Prepared rows on disk: flat arrays of tokens with offsets, written once and read through memory maps."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from peftcli.data.encode.encoded import Encoded
from peftcli.data.store.file_digests import GrowingDigest, write_record

META = "meta.json"
COLUMNS: dict[str, type[np.generic]] = {
    "ids": np.int32,  # tokens of all rows, one after another
    "lengths": np.int32,  # tokens of each row
    "mask": np.uint8,  # for each token whether it is learnt; absent where labels are something else
    "labels": np.int32,  # target tokens, tags or label numbers of all rows
    "label_lengths": np.int32,
    "types": np.uint8,  # segment of each token, for text pairs
    "value": np.float64,  # one number a row: a class or a regression value
    "origin": np.int64,  # which raw row it was made from
    "learnt": np.int32,  # learnt tokens of each row
    "digest": np.uint64,  # hash of tokens and labels, to find equal rows
    "raw_source": np.int32,  # for each raw row: number of its file
    "raw_row": np.int64,  # its line or element
    "raw_set": np.int16,  # number of its source in the recipe
    "raw_class": np.int32,  # its class, for stratified splits; -1 without
    "raw_group": np.uint64,  # hash of its group's value
    "raw_status": np.uint8,  # what became of it
    "raw_length": np.int32,  # its tokens before anything was cut
}


@dataclass(frozen=True, slots=True)
class RawRows:
    """What is remembered of the rows of a chunk as they were in the file."""

    sources: Sequence[str]
    rows: Sequence[int]
    classes: Sequence[int]
    groups: Sequence[int]
    statuses: Sequence[int]
    lengths: Sequence[int]


class StoreWriter:
    """Appends chunks to the arrays of a new store; a context manager that closes the files."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._stack = ExitStack()
        self._files: dict[str, IO[bytes]] = {}
        self._digests: dict[str, GrowingDigest] = {}
        self._sources: dict[str, int] = {}
        self._raw = 0

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def add(self, raw: RawRows, rows: Sequence[Encoded], origins: Sequence[int], number_of_set: int) -> None:
        """Append a chunk; `origins` are positions within its raw rows."""
        sources = [self._sources.setdefault(name, len(self._sources)) for name in raw.sources]
        self._put("raw_source", sources)
        self._put("raw_row", raw.rows)
        self._put("raw_set", [number_of_set] * len(sources))
        self._put("raw_class", raw.classes)
        self._put("raw_group", raw.groups)
        self._put("raw_status", raw.statuses)
        self._put("raw_length", raw.lengths)
        if rows:
            self._put("ids", np.concatenate([row.ids for row in rows]))
            self._put("lengths", [len(row.ids) for row in rows])
            self._put("origin", [self._raw + origin for origin in origins])
            self._put("learnt", [_learnt(row) for row in rows])
            self._put("digest", [_digest(row) for row in rows])
            self._optional(rows)
        self._raw += len(sources)

    def finish(self, meta: dict[str, Any]) -> None:
        """Write what is not an array, and the digests of all files; the store can be read from then on."""
        for handle in self._files.values():
            handle.flush()
        full = {**meta, "sources": list(self._sources), "columns": sorted(self._files)}
        text = json.dumps(full).encode()
        (self.directory / META).write_bytes(text)
        of_meta = GrowingDigest()
        of_meta.add(text)
        digests = {f"{column}.bin": digest for column, digest in self._digests.items()} | {META: of_meta}
        write_record(self.directory, {name: digest.value for name, digest in digests.items()})

    def _optional(self, rows: Sequence[Encoded]) -> None:
        if rows[0].mask is not None:
            self._put("mask", np.concatenate([row.mask for row in rows if row.mask is not None]))
        if rows[0].labels is not None:
            labels = [row.labels for row in rows if row.labels is not None]
            self._put("labels", np.concatenate(labels))
            self._put("label_lengths", [len(one) for one in labels])
        if rows[0].types is not None:
            self._put("types", np.concatenate([row.types for row in rows if row.types is not None]))
        if rows[0].value is not None:
            self._put("value", [row.value for row in rows])

    def _put(self, column: str, values: Any) -> None:
        if column not in self._files:
            self._files[column] = self._stack.enter_context(open(self.directory / f"{column}.bin", "wb"))  # noqa: SIM115  the stack closes it
            self._digests[column] = GrowingDigest()
        data = np.ascontiguousarray(values, dtype=COLUMNS[column]).data
        self._files[column].write(data)
        self._digests[column].add(data)


class Store:
    """The rows of a directory that `StoreWriter` finished; arrays are mapped, not read.

    Args:
        directory: its files are what was written; `file_digests.check_files` finds out.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.meta: dict[str, Any] = json.loads((directory / META).read_text(encoding="utf-8"))

    def __len__(self) -> int:
        return len(self.lengths)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the directory's name, not the arrays: other processes map the same files."""
        return _reopen, (self.directory, self.meta["inputs"])

    def rename(self, inputs: list[str]) -> None:
        """Call the files as this run names them: an entry made from the same bytes elsewhere holds other names."""
        names = dict(zip(self.meta["inputs"], inputs, strict=True))
        self.meta["inputs"] = inputs
        self.meta["sources"] = [names.get(source, source) for source in self.meta["sources"]]
        self.meta["evidence"] = [_with_name(line, names) for line in self.meta["evidence"]]
        for placed in (*self.meta["skipped"], self.meta["empty_answers"]):
            placed["source"] = names.get(placed["source"], placed["source"])

    def column(self, name: str) -> npt.NDArray[Any] | None:
        """Return a whole column as a memory map, None when these rows do not have it."""
        if name not in self.meta["columns"]:
            return None
        path = self.directory / f"{name}.bin"
        if path.stat().st_size == 0:
            return np.empty(0, dtype=COLUMNS[name])
        mapped = np.memmap(path, dtype=COLUMNS[name], mode="r")
        return mapped.view(np.ndarray)  # slices of the subclass cost three times as much

    def unmap(self) -> None:
        """Let go of the pages that were read: they count as memory of this process. They are mapped again when read."""
        for name in COLUMNS:
            self.__dict__.pop(name, None)

    @cached_property
    def ids(self) -> npt.NDArray[np.int32]:
        """Tokens of all rows."""
        return self._or_empty("ids")

    @cached_property
    def lengths(self) -> npt.NDArray[np.int32]:
        """Tokens of each row."""
        return self._or_empty("lengths")

    @cached_property
    def offsets(self) -> npt.NDArray[np.int64]:
        """Where each row starts in `ids`, and the end."""
        return _offsets(self.lengths)

    @cached_property
    def mask(self) -> npt.NDArray[np.uint8] | None:
        """Which tokens are learnt."""
        return self.column("mask")

    @cached_property
    def labels(self) -> npt.NDArray[np.int32] | None:
        """Target tokens, tags or label numbers of all rows."""
        return self.column("labels")

    @cached_property
    def label_offsets(self) -> npt.NDArray[np.int64]:
        """Where the labels of each row start, and the end."""
        return _offsets(self._or_empty("label_lengths"))

    @cached_property
    def types(self) -> npt.NDArray[np.uint8] | None:
        """Segment of each token."""
        return self.column("types")

    @cached_property
    def value(self) -> npt.NDArray[np.float64] | None:
        """One number a row."""
        return self.column("value")

    @cached_property
    def origin(self) -> npt.NDArray[np.int64]:
        """Raw row of each row."""
        return self._or_empty("origin")

    @cached_property
    def learnt(self) -> npt.NDArray[np.int32]:
        """Learnt tokens of each row; 1 where the row has one label as a whole."""
        return self._or_empty("learnt")

    @cached_property
    def digest(self) -> npt.NDArray[np.uint64]:
        """Hash of each row."""
        return self._or_empty("digest")

    @cached_property
    def raw_row(self) -> npt.NDArray[np.int64]:
        """Line or element of each raw row."""
        return self._or_empty("raw_row")

    @cached_property
    def raw_source(self) -> npt.NDArray[np.int32]:
        """File number of each raw row."""
        return self._or_empty("raw_source")

    def raw(self, name: str) -> npt.NDArray[Any]:
        """Return a column of the raw rows."""
        return self._or_empty(f"raw_{name}")

    def place(self, row: int) -> tuple[str, int]:
        """Return file and row number from which a row was made."""
        origin = int(self.origin[row])
        return self.meta["sources"][int(self.raw_source[origin])], int(self.raw_row[origin])

    def _or_empty(self, name: str) -> npt.NDArray[Any]:
        column = self.column(name)
        return np.empty(0, dtype=COLUMNS[name]) if column is None else column


def _reopen(directory: Path, inputs: list[str]) -> Store:
    store = Store(directory)
    store.rename(inputs)
    return store


def _learnt(row: Encoded) -> int:
    if row.mask is not None:
        return int(row.mask.sum())
    return 1 if row.labels is None else int((row.labels >= 0).sum())


def _digest(row: Encoded) -> int:
    # 64 bits: among a million rows a chance collision has probability 3e-8
    return int.from_bytes(hashlib.blake2b(row.ids.tobytes(), digest_size=8).digest(), "little")


def _offsets(lengths: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    return np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)))


def _with_name(evidence: str, names: Mapping[str, str]) -> str:
    """Return what was found of a source, behind the name that it has in this run."""
    name = max((name for name in names if evidence.startswith(f"{name}: ")), key=len, default="")
    return names[name] + evidence[len(name) :] if name else evidence
