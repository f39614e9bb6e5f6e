"""A recipe as `peft train` reads it: checked with its surroundings, Accelerate's config, the model's code. No torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from peftcli.distributed.launch.accelerate_config import for_recipe
from peftcli.models.own_code import with_allowed_code
from peftcli.names import NAMES
from peftcli.preflight import check_surroundings
from peftcli.process_state import keep_freed_memory
from peftcli.recipe.load_recipe import TRUST_REMOTE_CODE, LoadedRecipe, load_recipe
from peftcli.recipe.schema import TrainingSpec


def recipe_to_train(
    recipe: Path, changes: Sequence[str], *, trust_code: bool = False
) -> tuple[LoadedRecipe, tuple[str, ...]]:
    """Read and check a recipe, with what Accelerate's config adds; return notes on that, too.

    Args:
        recipe: its file.
        changes: `key=value` texts on top of it.
        trust_code: whoever types the command lets the model's own code run.

    Raises:
        UserError: every problem found.
    """
    changes = [*changes, TRUST_REMOTE_CODE] if trust_code else changes
    loaded = load_recipe(recipe, changes, NAMES, surroundings=check_surroundings)
    config = for_recipe(loaded, os.environ)
    if config.overrides:
        loaded = load_recipe(recipe, [*changes, *config.overrides], NAMES, surroundings=check_surroundings)
    return with_allowed_code(loaded), config.notes


def set_allocator(spec: TrainingSpec | None = None) -> None:
    """Let the C library keep freed memory for the next step: on a CPU, if the recipe leaves that on.

    Args:
        spec: None where the recipe is not known yet, as of a run that is evaluated.
    """
    from peftcli.distributed.devices import pick_device

    spec = spec or TrainingSpec()
    if spec.fast_paths.allocator and pick_device(spec.device).type == "cpu":
        keep_freed_memory()
