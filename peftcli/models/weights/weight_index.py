"""Which weight files a base has; no name in an index or link leads out of its directory, or to a pickle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from peftcli.errors import Problem, UserError
from peftcli.models.load.model_files import ModelSource, hub_is_reachable
from peftcli.models.weights.contained import foreign_target
from peftcli.typed_record import read_record

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
"""Which file holds which tensor, where there are several."""
SUFFIX = ".safetensors"
_AGAIN = "copy or download the model again"


@dataclass(frozen=True)
class _Index:
    """What transformers asks of an index."""

    weight_map: dict[str, str]
    metadata: dict[str, Any]


def files_by_tensor(index: Path) -> dict[str, str]:
    """Return which file each tensor is in, by an index that has been checked.

    Raises:
        UserError: it cannot be read, is no index, or names a file that is no safetensors file of its own directory;
            names the file and the key.
    """
    names = read_record(_Index, index, suggestion=_AGAIN).weight_map
    if not names:
        raise UserError(Problem("it names no tensor", file=str(index), key="weight_map", suggestion=_AGAIN))
    first = {file: tensor for tensor, file in reversed(names.items())}
    problems = [
        Problem(f"{file!r} {wrong}", file=str(index), key=f"weight_map.{first[file]}", suggestion=_AGAIN)
        for file in sorted(first)
        if (wrong := _wrong_name(file, index.parent)) is not None
    ]
    if problems:
        raise UserError(problems[:3])
    return names


def weight_files(directory: Path) -> list[Path]:
    """Return the files that loading reads, whether they are there or not; none for a directory without weights.

    Raises:
        UserError: the index is damaged or leads elsewhere, or a file is a link to something else.
    """
    if (directory / SINGLE).is_file():
        wrong = _wrong_name(SINGLE, directory)
        if wrong is not None:
            raise UserError(Problem(f"{directory / SINGLE} {wrong}", key="model.name_or_path", suggestion=_AGAIN))
        return [directory / SINGLE]
    if (directory / INDEX).is_file():
        return [directory / name for name in sorted(set(files_by_tensor(directory / INDEX).values()))]
    return []


def check_hub_index(source: ModelSource, revision: str | None) -> None:
    """Check the index of a model of the hub before the files that it names are fetched.

    Raises:
        UserError: as `files_by_tensor`.
    """
    from transformers.utils import cached_file

    found = cached_file(
        source.name,
        INDEX,
        revision=revision or "main",
        local_files_only=not hub_is_reachable(),
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if found is not None:
        files_by_tensor(Path(found))


def _wrong_name(name: str, directory: Path) -> str | None:
    """Return why a name in a directory of weights is not followed, None if it is."""
    if not name.endswith(SUFFIX):
        return "is no safetensors file: pickled weights are not read, because they can run code"
    paths = (PurePosixPath(name), PureWindowsPath(name))
    if any(path.is_absolute() or path.drive or ".." in path.parts for path in paths):
        return "is outside the model's directory"
    target = foreign_target(directory / name, directory) if "\0" not in name else None
    return f"is a link to {target}, which is outside the model's directory" if target is not None else None
