"""What the user asked of an export for a server, and the adapter and the base that it concerns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftcli.adapters.format import SavedAdapter
from peftcli.adapters.loading import load_adapter
from peftcli.adapters.transfer import adapter_of
from peftcli.deliverables.learnt_texts import is_plain_text
from peftcli.errors import UserError
from peftcli.models.load.load_model import load_config
from peftcli.names import NAMES
from peftcli.recipe.run_paths import STORED
from peftcli.recipe.schema import ModelSpec
from peftcli.recipe.stored_recipe import load_stored_recipe, stored_recipe
from peftcli.record.checkpoint_adapter import adapter_directory


@dataclass(frozen=True)
class Asked:
    """What the user asked for.

    Args:
        run: a run directory, or an adapter directory.
        output: of the new directory; a name that ends with `.gguf` is that of the file itself.
        base: name or path of the base, if it is no longer where the run found it.
        checkpoint: of this one, not of the finished run.
        trust_code: let the Python code that comes with the model run.
        kind: type of the matrices of a GGUF file.
        adapter_on: a model of Ollama's library, or a GGUF file, that an Ollama model is to be an adapter on.
        note: receives what the user should know while it runs.
    """

    run: Path
    output: Path
    base: str | None = None
    checkpoint: str | None = None
    trust_code: bool = False
    kind: str = "f32"
    adapter_on: str | None = None
    note: Callable[[str], None] = lambda _text: None


@contextmanager
def opened_adapter(asked: Asked) -> Iterator[tuple[SavedAdapter, Path]]:
    """Yield an adapter of a run or a checkpoint, and its directory."""
    with ExitStack() as stack:
        run = asked.run
        if asked.checkpoint is not None:
            recipe = load_stored_recipe(stored_recipe(run), NAMES).recipe
            run, notes = stack.enter_context(adapter_directory(run, recipe, asked.checkpoint))
            for text in notes:
                asked.note(text)
        directory = adapter_of(run)
        yield load_adapter(directory), directory


def trained_on_plain_text(run: Path) -> bool:
    """Return whether a run's recipe wants plain text, although the base may have a chat template.

    Of an adapter's directory alone nothing is known.
    """
    file = run / STORED
    return file.is_file() and is_plain_text(load_stored_recipe(file, NAMES).recipe)


def base_name(saved: SavedAdapter, asked: Asked) -> str:
    """Return the name of an adapter's base.

    Raises:
        UserError: nobody named it.
    """
    name = asked.base or saved.meta.base.get("name")
    if name is None:
        raise UserError(f"the adapter of {asked.run} does not name its base model", suggestion="add --base MODEL")
    return str(name)


def base_spec(saved: SavedAdapter, asked: Asked) -> ModelSpec:
    """Return the base of an adapter as a recipe names it.

    Raises:
        UserError: nobody named it.
    """
    revision = None if asked.base else saved.meta.base.get("revision")
    return ModelSpec(name_or_path=base_name(saved, asked), revision=revision, trust_remote_code=asked.trust_code)


def base_config(saved: SavedAdapter, asked: Asked) -> dict[str, Any]:
    """Return the config of an adapter's base as plain data.

    Raises:
        UserError: it is not there.
    """
    config: dict[str, Any] = load_config(base_spec(saved, asked)).to_dict()
    return config
