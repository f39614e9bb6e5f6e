"""The models of a chat: runs, merged directories, or a recipe's base; one of them is in memory at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from peftcli.assembly.outline import model_spec
from peftcli.distributed.devices import usable_device
from peftcli.distributed.processes import World
from peftcli.errors import UserError
from peftcli.inference.complete_model import is_complete_model, is_recipe, recipe_of_model, refuse_checkpoint
from peftcli.inference.open_run import Bases, FoundRun, Opening, find_run, load_run, opened
from peftcli.inference.opened_run import OpenedRun
from peftcli.inference.reading_file import with_reading
from peftcli.models.load.load_model import load_config
from peftcli.models.load.tokenizers import fit_to_tokenizer, load_tokenizer_with_notes
from peftcli.models.model_tasks import check_task, saved_tasks
from peftcli.models.own_code import with_allowed_code
from peftcli.names import NAMES
from peftcli.protocol.attachment import Attachment
from peftcli.recipe.load_recipe import TRUST_REMOTE_CODE, LoadedRecipe, load_recipe
from peftcli.recipe.schema import DTypeName
from peftcli.recipe.stored_recipe import load_stored_recipe, stored_recipe
from peftcli.tasks.task_table import GOES_ON, task_info

BASE = "base"
"""The name under which the model without an adapter is asked for."""


@dataclass(frozen=True)
class ChatTarget:
    """Something to talk to, checked without its weights.

    Args:
        name: what it is called in the chat: the last part of its path.
        loaded: its recipe; of a directory with a model, one that names it.
        found: of a run; None where the model is used as it is.
        read_as: format of the training rows of a complete model; None where that is not known.
    """

    name: str
    loaded: LoadedRecipe
    found: FoundRun | None = None
    read_as: str | None = None


@dataclass
class ChatModels:
    """The targets of a chat, and the one that is in memory.

    Args:
        targets: at least one, in the order in which they were named.
        dtype: of the base's weights; None is that of training.
    """

    targets: Sequence[ChatTarget]
    dtype: DTypeName | None = None
    _bases: Bases = field(default_factory=Bases)
    _open: tuple[str, OpenedRun] | None = None

    def names(self) -> list[str]:
        """Return the names of the targets."""
        return [target.name for target in self.targets]

    def target(self, name: str) -> ChatTarget:
        """Return a target by its name.

        Raises:
            UserError: there is none.
        """
        for target in self.targets:
            if target.name == name:
                return target
        raise UserError(f"there is no {name!r} here", suggestion=f"choose from: {', '.join(self.names())}")

    def use(self, name: str, *, without_adapter: bool = False) -> OpenedRun:
        """Return a target's model; what was in memory before gives its base to it where both have the same.

        Args:
            without_adapter: its base alone.

        Raises:
            UserError: there is no such target, or its base is gone or another one.
        """
        target = self.target(name)
        key = f"{name}/{BASE}" if without_adapter or target.found is None else name
        if self._open is not None and self._open[0] == key:
            return self._open[1]
        if self._open is not None:
            self._open[1].close()
            self._open = None
        found = None if without_adapter else target.found
        run = self._base(target) if found is None else load_run(found, self._bases)
        self._open = (key, run)
        return run

    def _base(self, target: ChatTarget) -> OpenedRun:
        found, loaded = target.found, target.loaded
        recipe = loaded.recipe
        spec = found.spec if found is not None and found.saved is not None else model_spec(recipe)
        if self.dtype is not None:
            spec = spec.model_copy(update={"dtype": self.dtype})
        world = World(usable_device(recipe.training.device))
        tokenizer, notes = load_tokenizer_with_notes(spec)
        base = self._bases.load(spec, recipe.task, None, world, recipe.seed)
        notes = [*notes, *base.all_notes, *fit_to_tokenizer(base.model, tokenizer, seed=recipe.seed)]
        run = opened(loaded, tokenizer, Attachment(base.model), None, base, world, notes)
        return replace(run, trained_format=target.read_as)


def find_targets(
    paths: Sequence[Path], dtype: DTypeName | None, checkpoint: str | None, *, trust_code: bool
) -> ChatModels:
    """Return what was named, checked as far as it can be without weights.

    Args:
        paths: runs, directories with a complete model, or recipes.
        dtype: hold the base in this type; None is that of training.
        checkpoint: of a run.
        trust_code: let the Python code that comes with a model run.

    Raises:
        UserError: something is missing, or writes no text; two have the same name.
    """
    targets = [_target(path, dtype, checkpoint, trust_code) for path in paths]
    names = [target.name for target in targets]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two of these are called {name}", suggestion="give one of the directories another name")
    return ChatModels(targets, dtype)


def _target(path: Path, dtype: DTypeName | None, checkpoint: str | None, trust_code: bool) -> ChatTarget:
    if is_recipe(path):
        refuse_checkpoint(checkpoint, f"{path} is a recipe")
        loaded = with_allowed_code(load_recipe(path, [TRUST_REMOTE_CODE] if trust_code else [], NAMES, need_data=False))
        _check_writes(str(path), loaded)
        return ChatTarget(path.stem, loaded)
    if not path.is_dir():
        raise UserError(
            f"there is no run, model directory or recipe {path}",
            suggestion="name what `peft train` or `peft merge` left, or a recipe to talk to its untrained base",
        )
    if not is_complete_model(path):
        _check_writes(str(path), load_stored_recipe(stored_recipe(path), NAMES))
        found = find_run(path, Opening(dtype, trust_code=trust_code, checkpoint=checkpoint))
        return ChatTarget(path.resolve().name, found.loaded, found)
    refuse_checkpoint(checkpoint, f"{path} is a complete model")
    loaded = recipe_of_model(path, trust_code=trust_code, task=GOES_ON)
    _check_model(path, loaded)
    loaded, trained = with_reading(loaded, path)
    return ChatTarget(path.resolve().name, loaded, read_as=trained)


def _check_writes(where: str, loaded: LoadedRecipe) -> None:
    """Refuse what writes no text, or reads and writes single texts.

    Raises:
        UserError: with the command that serves.
    """
    info = task_info(loaded.recipe.task)
    if not info.generates or info.reads != "text":
        raise UserError(
            f"{where} is for {info.name}: {info.summary}; a chat needs a model that continues a conversation",
            suggestion=f"peft predict {where} --input FILE",
        )


def _check_model(path: Path, loaded: LoadedRecipe) -> None:
    """Refuse a directory whose model was saved with another head, or cannot write.

    Raises:
        UserError: with what it is.
    """
    config = load_config(loaded.recipe.model)
    wanted = task_info(loaded.recipe.task).auto_class
    others = [task for task in saved_tasks(config) if task_info(task).auto_class != wanted]
    if others:
        raise UserError(
            f"{path} is a model for {others[0]} ({', '.join(config.architectures)}); a chat needs one for "
            f"{loaded.recipe.task}",
            suggestion=f'peft predict {path} --text "..."',
        )
    check_task(config, loaded.recipe.task)
