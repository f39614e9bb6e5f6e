"""From what a recipe names to files of rows: a file, a glob, a directory, a saved data set, a hub id, package:..."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from peftcli.data.read.compressed import COMPRESSED, bare_suffix
from peftcli.data.read.file_kinds import refuse_no_file
from peftcli.data.read.hub_datasets import download
from peftcli.data.read.json_files import row_lists
from peftcli.data.read.source_files import READERS, SourceFiles
from peftcli.data.read.splits import Purpose, choose_files, choose_split, split_of
from peftcli.errors import Problem, UserError
from peftcli.locations import expand_location
from peftcli.recipe.schema import DataSource, DataSpec
from peftcli.shown_text import some_of

_OTHER_KINDS = frozenset({
    ".xlsx", ".xls", ".ods", ".zip", ".tar", ".tgz", ".7z", ".rar", ".pkl", ".npy", ".npz", ".h5", ".hdf5", ".feather",
    ".orc", ".avro", ".sqlite", ".db",
})  # fmt: skip
"""Files that often hold rows, which are not read; of other files beside the data (a licence) nothing is said."""


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


def resolve_source(source: DataSource, key: str = "data.path", purpose: Purpose = "any") -> SourceFiles:
    """Find the files of a source, those of its split where names say that there are several.

    Args:
        key: the recipe's key of the path, for messages.
        purpose: what the rows are read for; it decides about the split where the recipe names none.

    Raises:
        UserError: nothing is there, nothing in it can be read, it has no such split, or the hub cannot be reached.
    """
    try:
        paths = expand_location(source.path)
    except UserError as error:
        raise UserError([replace(problem, key=key) for problem in error.problems]) from error
    if paths is None:
        return download(source, key, purpose)
    block = key.rpartition(".")[0]
    if source.config is not None:
        text = f"config {source.config!r} has no effect: {source.path} is not a data set of the hub"
        raise UserError(Problem(text, key=f"{block}.config", suggestion="leave it out, or name the file in the path"))
    for path in paths:
        refuse_no_file(path, key)
    if len(paths) == 1 and paths[0].is_dir():
        return _directory(paths[0], source, key, purpose)
    files = [path for path in paths if path.is_file()]
    if not files:
        raise UserError(Problem(f"{source.path!r} matches only directories", key=key, suggestion="end it with a file"))
    readable = [_readable(file, key) for file in files]
    if len(files) == 1:
        return _one_file(readable[0], source, f"{block}.split", purpose)
    base = Path(os.path.commonpath([file.parent for file in readable]))
    choice = choose_files(readable, base, source.split, purpose, f"the pattern {source.path}", f"{block}.split")
    return SourceFiles(source.path, choice.items, None, notes=_notes(choice.note))


def _one_file(path: Path, source: DataSource, key: str, purpose: Purpose) -> SourceFiles:
    """Return a file that the recipe names: all of it, or the list of its split in a JSON object of lists."""
    lists = row_lists(path, str(path)) if bare_suffix(path) == ".json" else []
    parts = {name: [name] for name in lists if split_of(name) or source.split == name}
    if parts or (lists and source.split is not None):
        choice = choose_split(parts, (), source.split, purpose, f"the file {path}", key)
        if len(choice.items) > 1:
            text = f"the file {path} holds several such lists: {', '.join(choice.items)}"
            raise UserError(Problem(text, key=key, suggestion="name one of them"))
        return SourceFiles(source.path, (path,), None, part=choice.items[0], notes=_notes(choice.note))
    if lists:
        others = f"the file {path} holds the lists {', '.join(lists)}: {lists[0]} is read; {key} chooses another"
        return SourceFiles(source.path, (path,), None, part=lists[0], notes=_notes(others if len(lists) > 1 else ""))
    if source.split is not None and split_of(path.name.split(".")[0]) != (split_of(source.split) or source.split):
        text = f"split {source.split!r} has no effect: {path} is one file without splits"
        raise UserError(Problem(text, key=key, suggestion="leave it out, or name a folder or the file of that split"))
    return SourceFiles(source.path, (path,), None)


def _directory(path: Path, source: DataSource, key: str, purpose: Purpose | None) -> SourceFiles:
    """Return the rows of a directory: a saved data set, data files side by side, class folders, or one of its splits.

    Args:
        purpose: None inside the folder of a split: there names say nothing of splits.
    """
    if (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
        return _saved(path, source, key, purpose)
    inside = _entries(path, key)
    files = [entry for entry in inside if entry.is_file() and bare_suffix(entry) in READERS]
    folders = [entry for entry in inside if entry.is_dir()]
    split_key = f"{key.rpartition('.')[0]}.split"
    if purpose is not None:
        named = [entry for entry in folders if split_of(entry.name) or entry.name == source.split]
        if named and (not files or source.split in [entry.name for entry in named]) and len(named) == len(folders):
            parts = {entry.name: [entry] for entry in named}
            choice = choose_split(parts, (), source.split, purpose, f"the folder {path}", split_key)
            if len(choice.items) == 1:
                found = _directory(choice.items[0], DataSource(path=source.path), key, None)
                return replace(found, notes=(*_notes(choice.note), *found.notes))
    texts = [file for folder in folders for file in _entries(folder, key) if _is_text(file)]
    if texts:
        _refuse_split(source, f"the folder {path} holds class folders", split_key)
        beside = _unread(path, [file.name for file in files])
        return SourceFiles(source.path, tuple(texts), None, "folders", path, notes=beside)
    deeper = [f"{one.name}/" for one in folders if not split_of(one.name) and any(map(_is_data, _entries(one, key)))]
    unread = _unread(path, [*(entry.name for entry in inside if _holds_unread_rows(entry)), *deeper])
    if files and purpose is None:
        return SourceFiles(source.path, tuple(files), None, notes=unread)
    if files:
        files += [
            file for folder in folders if split_of(folder.name) for file in _entries(folder, key) if _is_data(file)
        ]
        choice = choose_files(files, path, source.split, purpose or "any", f"the folder {path}", split_key)
        return SourceFiles(source.path, choice.items, None, notes=(*_notes(choice.note), *unread))
    names = ", ".join(folder.name for folder in folders)
    raise UserError(
        Problem(
            f"the directory {path} holds no data" + (f"; inside it are {names}" if names else ""),
            key=key,
            suggestion="class folders hold .txt files (one folder a class); otherwise name files or a glob. "
            "A folder below is chosen with data.split or a longer path",
        )
    )


def _saved(path: Path, source: DataSource, key: str, purpose: Purpose | None) -> SourceFiles:
    """Return a directory written by `datasets`' save_to_disk, or one split of it."""
    notes: tuple[str, ...] = ()
    split_key = f"{key.rpartition('.')[0]}.split"
    if (path / "dataset_dict.json").exists():
        splits = [entry.name for entry in sorted(path.iterdir()) if (entry / "dataset_info.json").exists()]
        parts = {name: [name] for name in splits if split_of(name) or name == source.split}
        others = [name for name in splits if name not in parts]
        if not parts and len(others) > 1:
            text = f"the saved data set {path} has the splits {', '.join(others)}"
            raise UserError(Problem(text, key=split_key, suggestion=f"name one, such as {split_key}: {others[0]}"))
        if source.split is not None and source.split not in splits and source.split not in map(split_of, splits):
            text = f"the saved data set has no split {source.split!r}"
            raise UserError(Problem(text, key=split_key, suggestion=f"splits: {', '.join(splits)}"))
        wanted = "any" if purpose is None else purpose
        choice = choose_split(parts, others, source.split, wanted, f"the saved data set {path}", split_key)
        path, notes = path / choice.items[0], _notes(choice.note)
    else:
        _refuse_split(source, f"{path} is a saved data set of one split", split_key)
    from peftcli.data.read.arrow_files import read_class_names, saved_files

    return SourceFiles(source.path, saved_files(path), None, "dataset", path, read_class_names(path), notes=notes)


def _refuse_split(source: DataSource, what: str, key: str) -> None:
    if source.split is not None:
        text = f"split {source.split!r} has no effect: {what}"
        raise UserError(Problem(text, key=key, suggestion="leave it out, or name what is meant in the path"))


def _notes(text: str) -> tuple[str, ...]:
    return (text,) if text else ()


def _unread(folder: Path, names: Sequence[str]) -> tuple[str, ...]:
    """Return a note on what of a folder is not read although rows may be in it."""
    return _notes(f"not read in the folder {folder}: {some_of(names, 3)}" if names else "")


def _holds_unread_rows(path: Path) -> bool:
    """Whether a file is of a kind that often holds rows, and has no reader here."""
    return path.is_file() and path.suffix.lower() in _OTHER_KINDS


def _entries(folder: Path, key: str) -> list[Path]:
    """Return what a folder holds, in order, without hidden entries.

    Raises:
        UserError: this user may not list it, or what is called like a data file in it is no file.
    """
    try:
        found = [entry for entry in sorted(folder.iterdir()) if not entry.name.startswith((".", "_"))]
    except OSError as error:
        remedy = "let this user list it (`chmod u+rx`), or name another directory"
        text = f"the directory {folder} cannot be listed: {error.strerror or error}"
        raise UserError(Problem(text, key=key, suggestion=remedy)) from error
    for entry in found:
        if bare_suffix(entry) in READERS:
            refuse_no_file(entry, key)
    return found


def _is_data(path: Path) -> bool:
    return path.is_file() and bare_suffix(path) in READERS


def _is_text(path: Path) -> bool:
    return path.is_file() and bare_suffix(path) == ".txt"


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
