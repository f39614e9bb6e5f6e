"""The trials of a comparison: names, recipes and changes. Names stay from one start of the command to the next."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from peftcli.atomic import write_text
from peftcli.protocol.registry import registry
from peftcli.recipe.schema import TrainingSpec
from peftcli.recipe.yaml.dump_recipe import dump_recipe
from peftcli.studies.compare.budget.run_cost import TIMED_STEPS, RunLength
from peftcli.studies.compare.candidate import Candidate
from peftcli.studies.engine.trial import Trial

LONGEST_TIMING = 2**16
"""Steps beyond which no timing run is tried for a method that asks for a certain number of steps."""


def write_recipes(candidates: Sequence[Candidate], study: Path) -> None:
    """Write each candidate's recipe below the study's directory, once: trials are changes of it."""
    for each in candidates:
        file = study / recipe_of(each)
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            write_text(file, dump_recipe(each.loaded.recipe, each.loaded.tree))


def recipe_of(candidate: Candidate) -> str:
    """Return where a candidate's recipe is, below the study's directory."""
    return f"recipes/{candidate.name}.yaml"


def timing_trial(candidate: Candidate, rows: int = 0) -> Trial:
    """Return a short run in a fresh process: it tells the time of a step and the peak memory.

    A method that needs more steps than usual (AdaLoRA with `tinit` and `tfinal`) gets what it needs.

    Args:
        rows: that it is evaluated on; 0 is all that are held out.
    """
    steps = shortest_run(candidate, TIMED_STEPS)
    length = RunLength(steps, steps, rows)
    changes = ("training.logging_steps=1", "training.warmup_steps=0", "training.warmup_ratio=0.0")
    return _trial(candidate, "timing", length, None, None, fresh=True, changes=changes)


def rate_trial(candidate: Candidate, rate: float, length: RunLength) -> Trial:
    """Return a run of the rate search."""
    return _trial(candidate, "rate", length, rate, None)


def score_trial(candidate: Candidate, rate: float, seed: int, length: RunLength) -> Trial:
    """Return a run whose rows are scored."""
    return _trial(candidate, "score", length, rate, seed)


def shortest_run(candidate: Candidate, steps: int) -> int:
    """Return the fewest optimizer steps, doubled from `steps`, that the method's settings fit in."""
    params = candidate.loaded.recipe.method
    method = registry.method(params.name)
    needed = steps
    while method.check_run(params, needed) and needed < LONGEST_TIMING:
        needed *= 2
    return needed if needed < LONGEST_TIMING else steps


def _trial(
    candidate: Candidate,
    purpose: Literal["timing", "rate", "score"],
    length: RunLength,
    rate: float | None,
    seed: int | None,
    *,
    fresh: bool = False,
    changes: tuple[str, ...] = (),
) -> Trial:
    """Return a trial. Held-out rows stay those of the recipe's own seed (`data.split_seed`), whatever the trial's."""
    recipe = candidate.loaded.recipe
    parts = [candidate.name, purpose if rate is None else f"{purpose}-{rate:.2g}"]
    overrides = [
        f"training.max_steps={length.steps}",
        "training.eval_strategy=steps",
        f"training.eval_steps={length.every}",
        *changes,
    ]
    if not length.first:
        overrides.append("training.eval_on_start=false")
    if length.rows:
        overrides.append(f"data.max_eval_rows={length.rows}")
    if purpose != "score":
        overrides += ["training.save_strategy=no", *_unset(recipe.training, "save_steps")]
    if purpose != "timing" and recipe.training.warmup_steps:
        overrides.append(f"training.warmup_steps={length.warmup(recipe.training.warmup_steps)}")
    if rate is not None:
        parts.append(f"steps-{length.steps}")
        overrides.append(f"training.learning_rate={rate!r}")
    if seed is not None:
        parts.append(f"seed-{seed}")
        overrides.append(f"seed={seed}")
        if recipe.data is not None and recipe.data.split_seed is None:
            overrides.append(f"data.split_seed={recipe.seed}")
    return Trial(
        ".".join(parts),
        recipe_of(candidate),
        tuple(overrides),
        fresh=fresh,
        score_rows=purpose == "score",
        group=candidate.label,
        purpose=purpose,
    )


def _unset(training: TrainingSpec, key: str) -> list[str]:
    """Return the change that leaves a key out which the recipe writes: beside what a study sets it would be refused."""
    return [f"training.{key}=null"] if getattr(training, key) is not None else []
