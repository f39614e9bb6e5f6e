"""The peak learning rate of a run and where it is from: the recipe, the run that goes on, or the default."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from peftcli.models.anatomy import Anatomy
from peftcli.protocol.rates.default_rate import default_rate, model_kind, rate_of_task
from peftcli.protocol.registry import registry
from peftcli.recipe.load_recipe import LoadedRecipe
from peftcli.recipe.schema import Recipe
from peftcli.record.run_directory import RunDirectory


@dataclass(frozen=True)
class ChosenRate:
    """A peak learning rate.

    Args:
        value: with AdamW, of the parameters without a rate of their own.
        reason: where it is from, in one line.
        left_open: whether the recipe that began the run states none.
    """

    value: float
    reason: str
    left_open: bool


def kept_rate(directory: RunDirectory, recipe: Recipe) -> ChosenRate | None:
    """Return the rate of the run that goes on, if its recipe left it open; None where the recipe's own counts.

    Earlier versions stored no rate: theirs was the method's one default for every model.
    """
    reason, stored = directory.open_rate_reason(), directory.recipe().training.learning_rate
    if stored is not None:
        return None if reason is None else ChosenRate(stored, reason, left_open=True)
    if recipe.training.learning_rate is not None:
        return None
    name = recipe.method.name
    older = f"the default for {name} in the version that began this run"
    return ChosenRate(registry.info(name).learning_rate, older, left_open=True)


def choose_rate(recipe: Recipe, anatomy: Anatomy, kept: ChosenRate | None, note: Callable[[str], None]) -> ChosenRate:
    """Return the rate of a run: what it began with, the recipe's, or the default for this method and model.

    Args:
        anatomy: of the base.
        kept: the rate of the run that goes on, as `kept_rate` returns it; None for a new run.
        note: told if the default for a new run is another one by now.
    """
    stated = recipe.training.learning_rate
    if kept is None and stated is not None:
        return ChosenRate(stated, "from the recipe", left_open=False)
    method = registry.method(recipe.method.name)
    of_method = default_rate(method, recipe.method, model_kind(anatomy), anatomy.hidden_size)
    default = rate_of_task(of_method, recipe.task, recipe.training.loss_type)
    if kept is None:
        return ChosenRate(default.value, default.reason, left_open=True)
    if kept.value != default.value:
        note(f"the run keeps its learning rate {kept.value:g}; the default for a new run is {default.value:g}")
    return kept


def with_rate(loaded: LoadedRecipe, rate: ChosenRate) -> LoadedRecipe:
    """Return the recipe with its learning rate filled in."""
    return loaded.with_training(learning_rate=rate.value)
