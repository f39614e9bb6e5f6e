"""Runs that exist, as the rows of a comparison, and what differs between them beside the method."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peftcli.recipe.load_recipe import LoadedRecipe
from peftcli.recipe.schema import Recipe
from peftcli.recipe.yaml.scalars import show
from peftcli.record.recipe_changes import in_order
from peftcli.shown_text import some_of
from peftcli.studies.compare.candidate import flat_values

_NO_DIFFERENCE = ("seed", "output_dir", "distributed", "data.cache_dir", "data.num_proc", "data.split_seed")
"""Keys in which runs of one row may differ; rows held out differently are found by what they are."""


@dataclass(frozen=True)
class ExistingRun:
    """One finished run: its recipe and its summary."""

    path: Path
    loaded: LoadedRecipe
    summary: dict[str, Any]

    @property
    def recipe(self) -> Recipe:
        """Its resolved recipe."""
        return self.loaded.recipe


@dataclass
class RunGroup:
    """Runs of one method that differ in their seed alone: a row."""

    label: str
    runs: list[ExistingRun] = field(default_factory=list)


def grouped(runs: Sequence[ExistingRun]) -> list[RunGroup]:
    """Return the rows: runs that differ in their seed alone are one; labels say how the others differ."""
    groups: dict[str, RunGroup] = {}
    for one in runs:
        whole = flat_values(in_order(one.recipe.as_dict()))
        values = {key: value for key, value in whole.items() if key not in _NO_DIFFERENCE}
        key = json.dumps(values, sort_keys=True)
        while key in groups and one.recipe.seed in [other.recipe.seed for other in groups[key].runs]:
            key += " again"  # the same run twice is two rows, not two seeds
        groups.setdefault(key, RunGroup("")).runs.append(one)
    found = list(groups.values())
    _label(found)
    return found


def _values(recipe: Recipe) -> dict[str, Any]:
    return flat_values(recipe.as_dict())


def _label(groups: Sequence[RunGroup]) -> None:
    """Name each row by its method, and by what tells it from other rows of the method."""
    for group in groups:
        recipe = group.runs[0].recipe
        rivals = [one.runs[0].recipe for one in groups if one.runs[0].recipe.method.name == recipe.method.name]
        mine, others = _values(recipe), [_values(one) for one in rivals]
        keys = [key for key in mine if key not in _NO_DIFFERENCE and any(one.get(key) != mine[key] for one in others)]
        settings = ",".join(f"{key.removeprefix('method.').removeprefix('training.')}={mine[key]}" for key in keys[:3])
        group.label = f"{recipe.method.name}:{settings}" if settings else recipe.method.name
    for group in groups:
        if sum(one.label == group.label for one in groups) > 1:
            group.label = f"{group.label} ({group.runs[0].path})"


def differences(runs: Sequence[ExistingRun]) -> Iterator[str]:
    """Yield a sentence for everything beside the method in which the runs differ."""
    flat, names = [_values(one.recipe) for one in runs], _names(runs)
    keys = dict.fromkeys(key for values in flat for key in values)
    for key in keys:
        if key.startswith("method.") or key in ("output_dir", "data.cache_dir", "data.num_proc"):
            continue
        by_value: dict[str, list[str]] = {}
        for run, values in zip(names, flat, strict=True):
            by_value.setdefault(show(values.get(key)), []).append(run)
        if len(by_value) > 1:
            yield f"{key} differs: {_listed(by_value)}"
    for name, said in (("base", "the base's weights"), ("train_rows", "the training rows"), ("device", "the devices")):
        by_value = {}
        for run, one in zip(names, runs, strict=True):
            by_value.setdefault(str(one.summary.get("inputs", {}).get(name)), []).append(run)
        if len(by_value) > 1:
            yield f"{said} differ: {'; '.join(', '.join(some[:4]) for some in by_value.values())}"


def _names(runs: Sequence[ExistingRun]) -> list[str]:
    """Return the name of each run's directory, with its folders where that is not unique."""
    names = [one.path.name for one in runs]
    return [name if name and names.count(name) == 1 else str(one.path) for name, one in zip(names, runs, strict=True)]


def _listed(by_value: dict[str, list[str]]) -> str:
    return "; ".join(f"{value} in {some_of(names, 4)}" for value, names in by_value.items())
