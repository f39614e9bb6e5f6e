"""Links that lead out of a directory which somebody else may have made: what they name is not that directory's."""

from __future__ import annotations

from pathlib import Path

_BLOBS = "blobs"


def foreign_target(file: Path, directory: Path) -> Path | None:
    """Return where a file of a directory really is, if that is outside and has another name; None otherwise.

    A link to a file of the same name elsewhere is how people share large files, and the hub's cache links into its own
    `blobs`. A link such as `model.safetensors -> ../outside.bin` makes a file of any kind look like another.
    """
    target, home = file.resolve(), directory.resolve()
    if target.is_relative_to(home) or target.name == file.name:
        return None
    cache = next((parent for parent in (home, *home.parents) if parent.name == "snapshots"), None)
    return None if cache is not None and target.is_relative_to(cache.parent / _BLOBS) else target
