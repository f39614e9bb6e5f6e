"""From what a recipe names to files of rows: a file, a glob, a directory, a saved data set, a hub id, package:..."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from peftcli.data.read.compressed import COMPRESSED, bare_suffix
from peftcli.data.read.json_files import read_json
from peftcli.data.read.records import Record
from peftcli.data.read.text_files import Rows, read_csv, read_jsonl, read_tsv, read_txt
from peftcli.errors import Problem, UserError
from peftcli.locations import expand_location
from peftcli.recipe.schema import DataSource, DataSpec

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
        dataset, part: a data set of the `datasets` library in arrow format, and which part of its files it is.
    """

    title: str
    files: tuple[Path, ...]
    reader: Reader | None
    kind: str = "files"
    base: Path | None = None
    class_names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    dataset: Any = None
    part: str = ""

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
        for path in self.files:
            reader = self.reader or READERS[bare_suffix(path)]
            yield from reader(path, str(path))

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

    @property
    def format(self) -> str | None:
        """The format of the rows where the kind of source decides it: that of class folders."""
        return "folders" if self.kind == "folders" else None

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in self.files)


def data_sources(spec: DataSpec) -> list[DataSource]:
    """Return the training sources of a recipe as a list, however they were written.

    Raises:
        UserError: neither or both of `data.path` and `data.datasets` are given.
    """
    if (spec.path is None) == (not spec.datasets):
        raise UserError(
            Problem(
                "give either data.path or data.datasets" + ("" if spec.path is None else ", not both"),
                key="data.path",
                suggestion="data: {path: train.jsonl}, or data: {datasets: [{path: a.jsonl}, {path: b.jsonl}]}",
            )
        )
    if spec.path is not None:
        return [DataSource(path=spec.path, config=spec.config, split=spec.split)]
    return list(spec.datasets or ())


def resolve_source(source: DataSource, key: str = "data.path") -> SourceFiles:
    """Find the files of a source.

    Raises:
        UserError: nothing is there, nothing in it can be read, or the hub cannot be reached.
    """
    try:
        paths = expand_location(source.path)
    except UserError as error:
        raise UserError([replace(problem, key=key) for problem in error.problems]) from error
    if paths is None:
        from peftcli.data.read.hub_datasets import download

        return download(source, key)
    if len(paths) == 1 and paths[0].is_dir():
        return _directory(paths[0], source, key)
    files = [path for path in paths if path.is_file()]
    if not files:
        raise UserError(Problem(f"{source.path!r} matches only directories", key=key, suggestion="end it with a file"))
    return SourceFiles(source.path, tuple(_readable(file, key) for file in files), None)


def _directory(path: Path, source: DataSource, key: str) -> SourceFiles:
    """Return the rows of a directory: a saved data set, data files side by side, or class folders."""
    if (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
        return _saved(path, source, key)
    if source.split and (path / source.split).is_dir():
        return _directory(path / source.split, DataSource(path=source.path), key)
    inside = [entry for entry in sorted(path.iterdir()) if not entry.name.startswith((".", "_"))]
    files = [entry for entry in inside if entry.is_file() and bare_suffix(entry) in READERS]
    folders = [entry for entry in inside if entry.is_dir()]
    texts = [file for folder in folders for file in sorted(folder.iterdir()) if _is_text(file)]
    if texts:
        return SourceFiles(source.path, tuple(texts), None, "folders", path)
    if files:
        return SourceFiles(source.path, tuple(files), None)
    names = ", ".join(folder.name for folder in folders)
    raise UserError(
        Problem(
            f"the directory {path} holds no data" + (f"; inside it are {names}" if names else ""),
            key=key,
            suggestion="class folders hold .txt files (one folder a class); otherwise name files or a glob. "
            "A folder below is chosen with data.split or a longer path",
        )
    )


def _saved(path: Path, source: DataSource, key: str) -> SourceFiles:
    """Return a directory written by `datasets`' save_to_disk, or one split of it."""
    if (path / "dataset_dict.json").exists():
        splits = [entry.name for entry in sorted(path.iterdir()) if (entry / "dataset_info.json").exists()]
        split = source.split or "train"
        if split not in splits:
            raise UserError(
                Problem(
                    f"the saved data set has no split {split!r}", key=key, suggestion=f"splits: {', '.join(splits)}"
                )
            )
        path = path / split
    from peftcli.data.read.arrow_files import read_class_names, saved_files

    return SourceFiles(source.path, saved_files(path), None, "dataset", path, read_class_names(path))


def _is_text(path: Path) -> bool:
    return path.is_file() and bare_suffix(path) == ".txt" and not path.name.startswith((".", "_"))


def _readable(path: Path, key: str) -> Path:
    if bare_suffix(path) not in READERS:
        raise UserError(
            Problem(
                f"{path}: the suffix {bare_suffix(path) or '(none)'} does not tell how to read it",
                key=key,
                suggestion=f"known: {' '.join(READERS)}, also with {' '.join(COMPRESSED)} behind",
            )
        )
    return path
