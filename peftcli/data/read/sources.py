"""From what a recipe names to files of rows: a file, a glob, a directory, a saved data set, a hub id, package:..."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from peftcli.data.read.compressed import COMPRESSED, bare_suffix
from peftcli.data.read.hub_datasets import download
from peftcli.data.read.source_files import READERS, SourceFiles
from peftcli.errors import Problem, UserError
from peftcli.locations import expand_location
from peftcli.recipe.schema import DataSource, DataSpec


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


def source_keys(spec: DataSpec) -> list[str]:
    """Return the recipe's key of each training source, for messages."""
    if spec.path is not None:
        return ["data"]
    return [f"data.datasets.{place}" for place in range(len(spec.datasets or ()))]


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
                f"{path}: there is no reader for the suffix {bare_suffix(path) or '(none)'}",
                key=key,
                suggestion=f"known: {' '.join(READERS)}, also with {' '.join(COMPRESSED)} appended",
            )
        )
    return path
