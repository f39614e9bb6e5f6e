"""Whether a recipe is a run's, and its relative paths, found again from another working directory.

They are relative to the directory in which `peft train` ran. The run's summary has it; a run whose `output_dir` is
relative lies below it, also after both were moved together.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftcli.recipe.schema import DataSource, DataSpec, Recipe

WORKING_DIRECTORY = "working_directory"
"""Key of a run's summary.json: the absolute directory in which it was trained."""


STORED = "recipe.yaml"
"""The recipe's file in a run directory."""

IMPORTED = "imported"
"""The status in summary.json of another library's adapter: it has none of the numbers of a training."""
_RUN_FILES = ("summary.json", "metrics.jsonl", "checkpoints", "adapter")


def lies_in_run(file: Path) -> bool:
    """Tell whether a recipe's file stands in a run directory: one with recipe.yaml and with other files of a run."""
    places = {file.parent, file.resolve().parent}  # a link to a run's recipe is a run's recipe
    return any((place / STORED).is_file() and any((place / name).exists() for name in _RUN_FILES) for place in places)


def homes(run: Path, recipe: Recipe) -> list[Path]:
    """Return the directories to which the recipe's relative paths may be relative, the likeliest first.

    Args:
        run: the run's directory.
    """
    found: list[Path] = []
    place, output = run.absolute(), Path(recipe.output_dir or ".")
    parts = output.parts
    if not output.is_absolute() and parts and ".." not in parts and place.parts[-len(parts) :] == parts:
        found.append(Path(*place.parts[: -len(parts)]))
    recorded = _summary(run).get(WORKING_DIRECTORY)
    if isinstance(recorded, str) and recorded and Path(recorded) not in found:
        found.append(Path(recorded))
    return found


def with_found_paths(recipe: Recipe, run: Path) -> Recipe:
    """Return the recipe with the paths that are not here, but are where the run was trained, made absolute."""
    places = homes(run, recipe)
    model = recipe.model.model_copy(update={"name_or_path": _found(recipe.model.name_or_path, places)})
    data = None if recipe.data is None else _data(recipe.data, places)
    return recipe.model_copy(update={"model": model, "data": data})


def _data(data: DataSpec, places: list[Path]) -> DataSpec:
    def source(one: DataSource) -> DataSource:
        return one.model_copy(update={"path": _found(one.path, places)})

    changes: dict[str, Any] = {name: _found(getattr(data, name), places) for name in ("path", "chat_template")}
    changes["datasets"] = None if data.datasets is None else [source(one) for one in data.datasets]
    given = data.validation
    if given is not None:
        changes["validation"] = [source(one) for one in given] if isinstance(given, list) else source(given)
    return data.model_copy(update=changes)


def _found(text: str | None, places: list[Path]) -> str | None:
    """Return a path as it is where it exists here or nowhere, else the one that exists in one of the places."""
    if text is None or text.startswith(("package:", "~")) or Path(text).is_absolute() or _exists(Path(), text):
        return text
    return next((str(place / text) for place in places if _exists(place, text)), text)


def _exists(place: Path, text: str) -> bool:
    try:
        return (place / text).exists() or any(place.glob(text))
    except (OSError, ValueError, NotImplementedError, IndexError):  # no path at all, or no pattern
        return False


def _summary(run: Path) -> Mapping[str, Any]:
    try:
        data = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}
