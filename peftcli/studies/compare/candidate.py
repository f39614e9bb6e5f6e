"""What is compared: a label and a recipe each, which must agree in everything but the method and its learning rate."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftcli.errors import Problem, UserError
from peftcli.recipe.load_recipe import LoadedRecipe
from peftcli.recipe.yaml.scalars import show

FREE = ("method", "training.learning_rate", "output_dir")
"""Keys and blocks in which recipes of one comparison may differ."""


@dataclass(frozen=True)
class Candidate:
    """One method to compare.

    Args:
        label: unique in the comparison: as typed, or the name of the recipe's file.
        loaded: its recipe, checked, with the changes that apply to all.
        name: the label as a file's name.
        own_rate: the learning rate that the recipe asks for; None takes the method's default.
    """

    label: str
    loaded: LoadedRecipe
    name: str
    own_rate: float | None


def named_candidates(pairs: Sequence[tuple[str, LoadedRecipe, float | None]]) -> list[Candidate]:
    """Return candidates of (label, recipe, rate) with a file's name each, that stays from one start to the next."""
    found: list[Candidate] = []
    for label, loaded, rate in pairs:
        name = base = file_name(label)
        count = 2
        while name.casefold() in {other.name.casefold() for other in found}:
            name, count = f"{base}-{count}", count + 1
        found.append(Candidate(label, loaded, name, rate))
    return found


def file_name(label: str) -> str:
    """Return a label with what a file's name can hold everywhere: `lora:r=32` is `lora-r32`."""
    text = label.replace("=", "")
    kept = "".join(char if char.isascii() and (char.isalnum() or char in "_.") else "-" for char in text)
    kept = "-".join(part for part in kept.split("-") if part)
    return kept[:60].strip("._-") or "method"


def labels_of(files: Sequence[Path], taken: Sequence[str] = ()) -> list[str]:
    """Return a label for each recipe: the name of its file, with folders and ending where that is not unique.

    Args:
        taken: labels that mean something else.
    """
    ways = [file.stem for file in files], [str(file.with_suffix("")) for file in files], [str(file) for file in files]
    return [
        next(names[place] for names in ways if names is ways[-1] or _unique(names[place], names, taken))
        for place in range(len(files))
    ]


def _unique(label: str, others: Sequence[str], taken: Sequence[str]) -> bool:
    return list(others).count(label) == 1 and label not in taken


def check_agreement(candidates: Sequence[Candidate]) -> None:
    """Refuse recipes that differ in more than the method, its learning rate and the directory of the run.

    Raises:
        UserError: a problem for each key that differs, with the values, where they are written, and an override that
            makes them equal.
    """
    problems = list(_differences(candidates))
    if problems:
        raise UserError(problems)


def _differences(candidates: Sequence[Candidate]) -> Iterator[Problem]:
    flat = [flat_values(candidate.loaded.recipe.as_dict()) for candidate in candidates]
    for key in dict.fromkeys(key for values in flat for key in values):
        if free(key):
            continue
        texts = [json.dumps(values.get(key), sort_keys=True) for values in flat]
        usual = max(dict.fromkeys(texts), key=texts.count)
        other = next((number for number, text in enumerate(texts) if text != usual), None)
        if other is None:
            continue
        first = texts.index(usual)
        file, line = candidates[other].loaded.where(key)
        theirs = candidates[first]
        against = f"{show(flat[first].get(key))} in {theirs.loaded.path}"
        yield Problem(
            f"{key} is {show(flat[other].get(key))} here, but {against}; recipes that are compared may differ in "
            "method, training.learning_rate and output_dir alone",
            file=file,
            line=line,
            key=key,
            suggestion=f"make them equal for this comparison: peft compare ... {key}={_typed(flat[first].get(key))}",
        )


def free(key: str) -> bool:
    """Return whether a dotted key may differ."""
    return any(key == part or key.startswith(f"{part}.") for part in FREE)


def flat_values(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return plain data as dotted key -> value; lists are values."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping) and value:
            flat.update(flat_values(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _typed(value: Any) -> str:
    """Return a value as it is typed after `key=` in a shell."""
    plain = isinstance(value, str) and value.replace("_", "").isalnum()
    return value if plain else shlex.quote(json.dumps(value))
