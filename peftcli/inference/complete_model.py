"""A directory with a complete model, as `peft merge` and `save_pretrained` write them, used as a run is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from peftcli.assembly.outline import model_spec
from peftcli.errors import UserError
from peftcli.inference.open_run import AS_TRAINED, FoundRun, Opening, find_run, held_in, with_text_length
from peftcli.inference.reading_file import with_reading
from peftcli.models.load.load_model import load_config
from peftcli.models.load.tokenizers import load_tokenizer_with_notes
from peftcli.models.model_tasks import possible_tasks, saved_tasks
from peftcli.models.own_code import with_allowed_code
from peftcli.names import NAMES
from peftcli.recipe.load_recipe import TRUST_REMOTE_CODE, LoadedRecipe, recipe_from_overrides
from peftcli.recipe.run_paths import STORED
from peftcli.recipe.schema import TaskName
from peftcli.record.run_directory import RunDirectory
from peftcli.tasks.task_table import GOES_ON

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def is_complete_model(path: Path) -> bool:
    """Tell whether a directory holds a model, and is no run's."""
    return path.is_dir() and (path / "config.json").is_file() and not (path / STORED).exists()


def is_recipe(path: Path) -> bool:
    """Tell whether a path names a recipe, which need not exist."""
    return path.suffix in (".yaml", ".yml") and not path.is_dir()


def recipe_of_model(path: Path, *, trust_code: bool = False, task: TaskName | None = None) -> LoadedRecipe:
    """Return a recipe that names a complete model, and nothing else that is not a default.

    Args:
        path: its directory.
        trust_code: let the Python code that comes with the model run.
        task: of its head; None reads it off the model's config.

    Raises:
        UserError: the config cannot be read, or does not say which task the model is for.
    """
    if task is None:
        task = _task_of(path, load_config(recipe_of_model(path, trust_code=trust_code, task=GOES_ON).recipe.model))
    named = [f"model.name_or_path={json.dumps(str(path))}", f"task={task}", "method.name=full"]
    loaded = recipe_from_overrides(str(path), [*named, *([TRUST_REMOTE_CODE] if trust_code else [])], NAMES)
    return with_allowed_code(loaded)


def find_used(path: Path, opening: Opening = AS_TRAINED) -> FoundRun:
    """Return a run, or a complete model as one, checked as far as it can be without weights.

    Raises:
        UserError: it is neither, or something about it is wrong.
    """
    if not is_complete_model(path):
        return find_run(path, opening)
    refuse_checkpoint(opening.checkpoint, f"{path} is a complete model")
    loaded, trained = with_reading(recipe_of_model(path, trust_code=opening.trust_code), path)
    loaded = with_text_length(loaded, opening.max_new_tokens)
    spec, notes = held_in(model_spec(loaded.recipe), opening.base_dtype)
    tokenizer, of_tokenizer = load_tokenizer_with_notes(spec)
    loaded = replace(loaded, path=str(path))
    return FoundRun(RunDirectory(path), loaded, None, spec, None, tokenizer, [*notes, *of_tokenizer], read_as=trained)


def refuse_checkpoint(checkpoint: str | None, what: str) -> None:
    """Refuse a checkpoint of what has none.

    Raises:
        UserError: one was asked for.
    """
    if checkpoint is not None:
        raise UserError(f"--checkpoint is for a run directory; {what}", suggestion="leave it out, or name the run")


def _task_of(path: Path, config: PretrainedConfig) -> TaskName:
    """Return the task of the head with which a model was saved.

    Raises:
        UserError: none of the tasks here has it.
    """
    saved = saved_tasks(config)
    if len(saved) == 1:
        return saved[0]
    names = ", ".join(str(name) for name in getattr(config, "architectures", None) or []) or "no architectures"
    can = ", ".join(possible_tasks(config)) or "none of the tasks here"
    raise UserError(
        f"{path}/config.json names {names}: it does not say for which task this model was saved",
        suggestion=f"name a run, or a directory that `peft merge` wrote; a recipe can train it for: {can}",
    )
