"""Data sets of the hub, through the `datasets` library, which downloads and converts them once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peftcli.data.read.source_files import SourceFiles
from peftcli.data.read.splits import Purpose
from peftcli.errors import Problem, UserError
from peftcli.recipe.schema import DataSource
from peftcli.shown_text import first_line


def download(source: DataSource, key: str, purpose: Purpose = "any") -> SourceFiles:
    """Return the arrow files of a hub data set, downloading it if it is not there yet.

    Args:
        purpose: validation rows are those of the split of that name where the recipe names none, all others train.

    Raises:
        UserError: it does not exist, has no such configuration or split, or the hub cannot be reached.
    """
    import datasets  # a second of imports: only when the hub is asked for

    split = source.split or ("validation" if purpose == "validation" else "train")
    try:
        loaded: Any = datasets.load_dataset(source.path, source.config, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            Problem(
                f"{source.path!r} is not a file here and cannot be loaded from the hub: {first_line(error)}",
                key=key,
                suggestion="check the name, data.config, data.split and the network; local data is a path that exists",
            )
        ) from error
    return from_dataset(loaded, source.path, f"{source.config} {split}")


def from_dataset(loaded: Any, title: str, part: str) -> SourceFiles:
    """Return a loaded data set as a source.

    Args:
        part: configuration and split; the files may hold more rows than the part, so both decide the content.
    """
    from peftcli.data.read.arrow_files import class_columns

    files = tuple(Path(entry["filename"]) for entry in loaded.cache_files)
    names = class_columns(loaded.features.to_dict())
    return SourceFiles(title, files, None, "hub", None, names, loaded.with_format("arrow"), part)
