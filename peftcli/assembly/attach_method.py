"""The recipe's method on the live model, with fresh values or those of an earlier adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from peftcli.adapters.format import SavedAdapter, base_of
from peftcli.adapters.loading import load_adapter
from peftcli.assembly.divide_base import divide_base
from peftcli.assembly.rows_to_train import rows_to_train
from peftcli.data.store.labels import LabelSpec
from peftcli.distributed.processes import World
from peftcli.errors import Problem, UserError
from peftcli.layers.part_device import base_comes_to
from peftcli.locations import resolve_location
from peftcli.models.anatomy import Anatomy
from peftcli.models.load.head_rows import head_rows, unnamed_labels
from peftcli.models.load.load_model import Loaded
from peftcli.models.load.tokenizers import fit_to_tokenizer
from peftcli.models.read_anatomy import read_anatomy
from peftcli.protocol.apply_method import apply_method
from peftcli.protocol.attachment import Attachment
from peftcli.protocol.registry import registry
from peftcli.recipe.method_params import MethodParams
from peftcli.recipe.schema import Recipe
from peftcli.recipe.stored_recipe import has_steps_to_go
from peftcli.recipe.yaml.scalars import show

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_PLACES = frozenset({
    "init_from", "trainable_token_indices", "modules_to_save", "target_modules", "exclude_modules", "target_parameters",
    "layers_to_transform",
})  # fmt: skip
"""Keys that say where an adapter is, in one of several ways; its tensors are compared with the places themselves."""


@dataclass(frozen=True)
class Attached:
    """The recipe's method on the live model.

    Args:
        attachment: filled: with fresh values, or those of `method.init_from`.
        params: the hyper-parameters that it was made by: the recipe's, with what `init_from` brings.
        notes: what the user should know of the base, its vocabulary and its head.
    """

    attachment: Attachment
    params: MethodParams
    anatomy: Anatomy
    notes: list[str]


def attach_method(
    recipe: Recipe, base: Loaded, tokenizer: PreTrainedTokenizerBase, labels: LabelSpec | None, world: World
) -> Attached:
    """Attach the recipe's method to the live model, with fresh values or those of `method.init_from`.

    A base whose values are still in its files is divided among the processes here, and filled.

    Raises:
        UserError: the method does not fit the model, or the adapter of `init_from` does not.
    """
    origin, params = recipe.method.init_from, recipe.method
    earlier = load_adapter(_adapter_directory(origin)) if origin is not None else None
    if earlier is not None:
        params = params.after(earlier.params)
    notes = [*base.notes, *fit_to_tokenizer(base.model, tokenizer, seed=recipe.seed)]
    anatomy = read_anatomy(base.model, recipe.model.anatomy)
    with base_comes_to(world.device):
        rows = rows_to_train(recipe.model, params, tokenizer)
        attachment = apply_method(base.model, anatomy, params, train_head=recipe.training.train_head, rows=rows)
    if base.unread is not None:
        divide_base(anatomy, attachment, registry.info(recipe.method.name), world)
        base.unread.fill(base.model, world)
    attachment.initialise(base.model, tokenizer=tokenizer, labels=labels.names if labels is not None else ())
    head_note = base.head_note
    if earlier is not None:
        notes += _other_values(earlier.params, params)
        state, brought, of_rows = _with_head_by_name(earlier, attachment, base, labels)
        attachment.load_state_dict(state)
        if (trained_on := base_of(earlier.meta)) is not None and not trained_on.same_files(base.identity):
            notes.append(
                f"the adapter of method.init_from was trained on other weights than those of {base.identity.name}"
            )
        head_note = of_rows if brought else head_note
        place = None if origin is None else resolve_location(origin)
        if place is not None and has_steps_to_go(place):
            notes.append(f"{origin} was continued and is not finished: method.init_from takes its adapter of before")
    return Attached(attachment, params, anatomy, [*notes, head_note] if head_note else notes)


def _other_values(earlier: MethodParams, now: MethodParams) -> list[str]:
    """Return a note on the hyper-parameters with which an adapter was trained and that the recipe has otherwise.

    Many act on what its weights do: a scale, an activation, the seed of frozen matrices.
    """
    before, after = (_flat(params.model_dump(mode="json")) for params in (earlier, now))
    other = [key for key in after if key in before and before[key] != after[key]]
    if not other or earlier.name != now.name:
        return []
    told = ", ".join(f"{key} {show(before[key])} (here {show(after[key])})" for key in other)
    return [f"the adapter of method.init_from was trained with {told}; its weights are used with this recipe's values"]


def _flat(values: Mapping[str, Any], start: str = "") -> dict[str, Any]:
    """Return the values of a method's keys, those of blocks inside by dotted key; patterns are one value."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and "name" in value:
            found.update(_flat(value, f"{start}{key}."))
        elif isinstance(value, list) and value and all(isinstance(each, dict) for each in value):
            for number, each in enumerate(value):
                found.update(_flat(each, f"{start}{key}.{number}."))
        elif key not in _PLACES:
            found[start + key] = value
    return found


def _with_head_by_name(
    earlier: SavedAdapter, attachment: Attachment, base: Loaded, labels: LabelSpec | None
) -> tuple[dict[str, Tensor], bool, str | None]:
    """Return an adapter's tensors, its head's rows where the data's labels want them; whether it brings a head; a note.

    A label that the adapter does not know keeps the row that the head has now.
    """
    rows_of = [name for name in base.label_parameters if name in earlier.state]
    if not rows_of:
        return earlier.state, False, None
    if labels is None or not labels.names:
        return earlier.state, True, None
    size = len(earlier.state[rows_of[0]])
    known = earlier.meta.label_spec
    names = known.names if known is not None and len(known.names) == size else unnamed_labels(size)
    rows = head_rows(labels.names, names)
    own = attachment.head_tensors()
    placed = {name: rows.place(own[name], earlier.state[name]) for name in rows_of if name in own}
    return {**earlier.state, **placed}, True, rows.note("the adapter of method.init_from")


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
