"""Recipes in which everything is random that can be: every method's dropout, the base's own, and NEFTune."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peftcli.protocol.registry import registry
from peftcli.recipe.load_recipe import LoadedRecipe
from tests.matrix.runs import SMALL, TASKS, WIDE, Workshop
from tests.tiny import save_tiny, tiny_config

RATE = 0.25
"""Of every dropout."""
LAYERS_RATE = 0.1
"""Of layers that are skipped: with two, both may be, and then nothing is learnt."""


def drops(method: str) -> dict[str, Any]:
    """Return a method's own rates of dropout."""
    fields = registry.info(method).params.model_fields
    return {name: RATE for name, field in fields.items() if "dropout" in name and isinstance(field.default, float)}


class Noisy(Workshop):
    """Models whose config has dropout wherever it can, and steps of eight rows."""

    def model(self, family: str) -> Path:
        """Return the directory of a tiny model with dropout, written on first use."""
        path = self.home / "noisy" / family
        if not path.exists():
            task = TASKS.get(family, "causal_lm")
            config = tiny_config(family).to_dict()
            rated = [key for key, value in config.items() if "drop" in key and isinstance(value, float)]
            rates = {key: LAYERS_RATE if "layerdrop" in key else RATE for key in rated}
            wide = WIDE.get(family, {"initializer_range": 0.2})
            save_tiny(path, family, "base" if "classification" in task else task, **wide, **rates)
        return path

    def noisy(self, name: str, family: str, method: str, processes: int = 1, /, **changes: Any) -> LoadedRecipe:
        """Write a recipe of three steps of eight rows, shared among processes (the last step of an epoch has four)."""
        rows = {"training__per_device_train_batch_size": 8 // processes} | changes
        own = {"name": method, **SMALL.get(method, {}), **drops(method)}
        return self.recipe(name, family, method, **{"method": own, **rows})
