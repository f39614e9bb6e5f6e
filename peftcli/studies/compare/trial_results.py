"""What the result of a trial tells: its score, its learning rate, how many steps its recipe asks for."""

from __future__ import annotations

import math
from pathlib import Path

from peftcli.errors import UserError
from peftcli.names import NAMES
from peftcli.protocol.registry import registry
from peftcli.recipe.schema import Recipe
from peftcli.recipe.stored_recipe import recipe_as_written, stored_recipe
from peftcli.studies.compare.candidate import Candidate
from peftcli.studies.engine.trial import TrialResult


def final_score(result: TrialResult, metric: str) -> float | None:
    """Return the metric of the adapter that a run kept; of a run that was stopped, that of its last evaluation."""
    kept = (result.summary.get("eval") or {}).get(metric) if result.state == "finished" else None
    if kept is None and result.curve and result.state in ("finished", "stopped"):
        kept = result.curve[-1].metrics.get(metric)
    return float(kept) if isinstance(kept, int | float) and math.isfinite(kept) else None


def method_rate(candidate: Candidate, timing: TrialResult, study: Path) -> float:
    """Return the default learning rate that the timing run used: its own recipe has every default filled in."""
    if timing.run is not None:
        try:
            written = recipe_as_written(stored_recipe(study / timing.run), NAMES).training.learning_rate
        except UserError:
            written = None
        if written is not None:
            return written
    return registry.info(candidate.loaded.recipe.method.name).learning_rate


def step_count(recipe: Recipe, timing: TrialResult) -> int | None:
    """Return the optimizer steps that a recipe asks for, by the rows that the timing run found; None without them."""
    from peftcli.training.step_plan import make_plan

    inputs = timing.summary.get("inputs") or {}
    rows = inputs.get("train_count")
    if recipe.training.max_steps is None and not rows:
        return None
    return make_plan(recipe.training, rows or 1, 1).total_steps
