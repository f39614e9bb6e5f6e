"""`peft estimate --memory 24GB`: which methods and settings fit, and what each saves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from peftcli.analysis.estimate.estimating import Basis, estimate
from peftcli.errors import UserError


@dataclass(frozen=True)
class Option:
    """One way to run the recipe.

    Args:
        overrides: to type behind the recipe; empty for the recipe as it is.
        peak: bytes of the fullest device.
        saves: bytes less than the recipe as it is takes.
    """

    overrides: str
    peak: int
    saves: int
    fits: bool


def options(basis: Basis, limit: int, processes: int) -> list[Option]:
    """Return the recipe as it is and cheaper ways to run it, each estimated; what does not apply is left out.

    Args:
        limit: bytes of one device.
    """
    found: list[Option] = []
    as_it_is = 0
    for changes, count in _candidates(basis, processes):
        try:
            peak = estimate(basis, changes, processes=count).peak
        except UserError:
            if not changes:
                raise
            continue
        as_it_is = as_it_is or peak
        text = " ".join(f"{key}={str(value).lower()}" for key, value in changes.items())
        text += f" --num-processes {count}" if count != processes else ""
        found.append(Option(text.strip(), peak, as_it_is - peak, peak <= limit))
    return found


def _candidates(basis: Basis, processes: int) -> Iterator[tuple[Mapping[str, Any], int]]:
    """Yield changes of the recipe, from those that cost nothing to those that change what is learnt."""
    recipe = basis.recipe
    training, model = recipe.training, recipe.model
    recompute: dict[str, Any] = {"training.gradient_checkpointing": True}
    longest = int(basis.train.lengths.max())
    short: dict[str, Any] = {"training.max_tokens_per_micro_batch": longest}
    half: dict[str, Any] = {"model.dtype": "bfloat16"}
    quarter: dict[str, Any] = {"model.load_in_4bit": True}
    yield {}, processes
    if training.per_device_train_batch_size > 1:
        yield short, processes
    yield recompute, processes
    yield recompute | short, processes
    if model.dtype in ("auto", "float32") and not model.load_in_4bit:
        yield half | recompute | short, processes
    if not model.load_in_4bit:
        yield quarter, processes
        yield quarter | recompute | short, processes
    sharded = {"distributed.strategy": "fsdp"}
    for count in (2, 4, 8):
        if count > processes:
            yield sharded | recompute | short, count
    if basis.tier == "config" and recipe.data is not None:
        yield recompute | short | {"data.max_length": max(1, longest // 2)}, processes
