"""The recipe's method on the live model, with fresh values or those of an earlier adapter."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from peftcli.adapters.loading import load_adapter
from peftcli.data.store.labels import LabelSpec
from peftcli.errors import Problem, UserError
from peftcli.locations import resolve_location
from peftcli.models.anatomy import Anatomy
from peftcli.models.load.load_model import Loaded
from peftcli.models.load.tokenizers import fit_to_tokenizer
from peftcli.models.read_anatomy import read_anatomy
from peftcli.protocol.apply_method import apply_method
from peftcli.protocol.attachment import Attachment
from peftcli.recipe.schema import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def attach_method(
    recipe: Recipe, base: Loaded, tokenizer: PreTrainedTokenizerBase, labels: LabelSpec | None
) -> tuple[Attachment, Anatomy]:
    """Attach the recipe's method to the live model, with fresh values or those of `method.init_from`.

    Raises:
        UserError: the method does not fit the model, or the adapter of `init_from` does not.
    """
    fit_to_tokenizer(base.model, tokenizer, seed=recipe.seed)
    anatomy = read_anatomy(base.model, recipe.model.anatomy)
    attachment = apply_method(base.model, anatomy, recipe.method, train_head=recipe.training.train_head)
    attachment.initialise(base.model, tokenizer=tokenizer, labels=labels.names if labels is not None else ())
    if recipe.method.init_from is not None:
        attachment.load_state_dict(load_adapter(_adapter_directory(recipe.method.init_from)).state)
    return attachment, anatomy


def _adapter_directory(text: str) -> Path:
    """Return the adapter directory of a run, or the directory itself.

    Raises:
        UserError: there is no such directory.
    """
    path = resolve_location(text)
    if path is None or not path.is_dir():
        raise UserError(
            Problem(f"there is no directory {text}", key="method.init_from", suggestion="name a run or an adapter")
        )
    return path / "adapter" if (path / "adapter").is_dir() else path
