"""The recipe that is stored in a run: finding it, and reading it although an earlier version wrote it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from peftcli.errors import Problem, UserError
from peftcli.recipe.aliases import renamed_keys
from peftcli.recipe.load_recipe import TRUST_REMOTE_CODE, LoadedRecipe, load_recipe, without_unasked_code
from peftcli.recipe.run_paths import STORED, with_found_paths
from peftcli.recipe.schema import Recipe
from peftcli.recipe.vocabulary import Names
from peftcli.suggestions import did_you_mean, nearest


def stored_recipe(run: Path) -> Path:
    """Return the recipe's file in a run directory.

    Raises:
        UserError: it is no run directory; says what it is, and what to name instead.
    """
    if (run / STORED).is_file():
        return run / STORED
    if not run.exists():
        raise UserError(f"there is no run directory {run}", suggestion=_near(run))
    what, remedy = _other_than_a_run(run)
    raise UserError(f"{run} is no run directory: {what}", suggestion=remedy)


def _near(run: Path) -> str:
    try:
        names = [entry.name for entry in run.parent.iterdir() if (entry / STORED).is_file()]
    except OSError:
        names = []
    close = nearest(run.name, names)
    return did_you_mean(run.parent / name for name in close) or _NAME_A_RUN


_NAME_A_RUN = "name a directory that `peft train` wrote"


def _other_than_a_run(path: Path) -> tuple[str, str]:
    """Return what a path is, and what to do about it."""
    if path.is_file():
        if path.name == STORED and (path.parent / "summary.json").is_file():
            return "it is the recipe in a run directory", f"name the run: {path.parent}"
        if path.suffix in (".yaml", ".yml"):
            return "it is a recipe", f"train it first (`peft train {path}`), then name its output directory"
        return "it is a file", _NAME_A_RUN
    if (path / "adapter_config.json").is_file():
        if (path.parent / STORED).is_file():
            return "it is the adapter in a run directory", f"name the run: {path.parent}"
        if (path / "peftcli.json").is_file():
            return "it is an adapter without its run", "put it back as adapter/ beside the recipe.yaml of its run"
        return "it is an adapter of another library", f"turn it into a run first: peft import {path} -o DIR"
    if (path / "config.json").is_file():
        return "it is a model", _NAME_A_RUN
    return f"it has no {STORED}", _NAME_A_RUN


def has_steps_to_go(run: Path) -> bool:
    """Return whether a run is not finished, such as a finished one that was continued with more: what lies there beside
    its checkpoints is the result of before.
    """
    steps = any((run / "checkpoints").glob("step-*"))
    return steps and (run / STORED).is_file() and not (run / "summary.json").is_file()


def refuse_unfinished(run: Path) -> None:
    """Refuse a run that `has_steps_to_go`.

    Raises:
        UserError: says how to go on, and how to use what there is.
    """
    if has_steps_to_go(run):
        remedy = "continue it with `peft train RECIPE --resume`, or use what it has so far with `--checkpoint last`"
        raise UserError(f"the run {run} is not finished", suggestion=remedy)


def load_stored_recipe(file: Path, names: Names, *, trust_code: bool = False) -> LoadedRecipe:
    """Read a run's recipe.yaml. Keys that an earlier version wrote get their present names.

    Args:
        file: recipe.yaml of a run; an imported adapter's has no `data`.
        names: what a recipe can name.
        trust_code: the person who types the command lets the model's own code run. What the file says of it counts for
            nothing (`LoadedRecipe.unasked_code`).

    Raises:
        UserError: it was changed or damaged, or its version cannot be read.
    """
    try:
        typed = [TRUST_REMOTE_CODE] if trust_code else []
        loaded = load_recipe(file, typed, names, need_data=False, upgrades=renamed_keys.CHANGES)
        _refuse_half(file)
    except UserError as error:
        about = Problem(
            "this recipe is that of a run, which must not be edited",
            file=str(file),
            suggestion="undo the changes; if another version of peftcli wrote it, use that version (its number is in "
            "summary.json)",
        )
        raise UserError([*error.problems, about]) from error
    loaded = without_unasked_code(loaded)
    return replace(loaded, recipe=with_found_paths(loaded.recipe, file.parent))


def recipe_as_written(file: Path, names: Names) -> Recipe:
    """Return a run's recipe with the `trust_remote_code` that its file holds: to compare, not to load a model.

    Raises:
        UserError: as `load_stored_recipe`.
    """
    loaded = load_stored_recipe(file, names)
    if not loaded.unasked_code:
        return loaded.recipe
    model = loaded.recipe.model.model_copy(update={"trust_remote_code": True})
    return loaded.recipe.model_copy(update={"model": model})


def _refuse_half(file: Path) -> None:
    """Refuse a recipe whose end is missing: what is left may be a recipe, too, with defaults for the rest.

    Raises:
        UserError: it ends within a line, and before the last key of a recipe, which every stored one has.
    """
    text = file.read_text(encoding="utf-8")
    if not text.endswith("\n") and not re.search("^seed:", text, flags=re.MULTILINE):
        raise UserError(Problem("the end of the recipe is missing", file=str(file), line=text.count("\n") + 1))
