"""What the result of a trial tells: its score, its learning rate, how many steps its recipe asks for."""

from __future__ import annotations

import math
from pathlib import Path

from peftcli.errors import Problem, UserError
from peftcli.names import NAMES
from peftcli.recipe.schema import Recipe
from peftcli.recipe.stored_recipe import recipe_as_written, stored_recipe
from peftcli.studies.engine.trial import TrialResult


def final_score(result: TrialResult, metric: str) -> float | None:
    """Return the metric of the adapter that a run kept; of a run that was stopped, that of its last evaluation."""
    kept = (result.summary.get("eval") or {}).get(metric) if result.state == "finished" else None
    if kept is None and result.curve and result.state in ("finished", "stopped"):
        kept = result.curve[-1].metrics.get(metric)
    return float(kept) if isinstance(kept, int | float) and math.isfinite(kept) else None


def method_rate(timing: TrialResult, study: Path) -> float:
    """Return the default learning rate that the timing run used: its own recipe has every default filled in.

    Raises:
        UserError: that recipe was damaged or removed.
    """
    assert timing.run is not None  # it trained
    file = stored_recipe(study / timing.run)
    rate = recipe_as_written(file, NAMES).training.learning_rate
    if rate is None:
        remedy = f"remove {timing.name}.json from the study's results, and {file.parent}: it is timed again"
        raise UserError(Problem("the learning rate of this run was removed", str(file), suggestion=remedy))
    return rate


def step_count(recipe: Recipe, timing: TrialResult) -> int | None:
    """Return the optimizer steps that a recipe asks for, by the rows that the timing run found; None without them."""
    from peftcli.training.step_plan import make_plan

    inputs = timing.summary.get("inputs") or {}
    rows = inputs.get("train_count")
    if recipe.training.max_steps is None and not rows:
        return None
    return make_plan(recipe.training, rows or 1, 1).total_steps
