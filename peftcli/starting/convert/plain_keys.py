"""Translate the keys that stand for one key here: the same name, or another by the tables of `recipe/aliases`."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from pydantic import BaseModel

from peftcli.protocol.registry import registry
from peftcli.recipe.aliases.all_aliases import ALIASES
from peftcli.recipe.aliases.foreign_values import CLOSED, VALUES
from peftcli.recipe.preference_losses import HYPERPARAMETERS, PREFERENCE_LOSSES
from peftcli.recipe.schema import DataSpec, DistributedSpec, ModelSpec, TrainingSpec
from peftcli.recipe.yaml.scalars import read_scalar, show
from peftcli.recipe.yaml.yaml_lines import Key
from peftcli.starting.convert.conversion import Conversion

_BLOCKS: dict[str, type[BaseModel]] = {
    "training": TrainingSpec,
    "model": ModelSpec,
    "data": DataSpec,
    "distributed": DistributedSpec,
}
_TOP = ("output_dir", "seed")
_INSTEAD = {"data.chat_template": "the tokenizer's own template is used"}
"""What happens where a value has no counterpart, by our key."""
_FLASH = "needs a GPU and the package flash-attn; without the line torch's own attention is used"
_UNKNOWN = "no key of a recipe is known to do this"


def translate_plain(work: Conversion, key: Key, value: Any) -> None:
    """Translate one key by the tables, or leave it to the user."""
    name = str(key[-1]).strip().lower().replace("-", "_")
    if value is None or value == "":
        work.empty(key)
        return
    alias = ALIASES.get(name)
    theirs = alias is not None and work.tool in alias.tools  # what they mean by a word that is also one of ours
    ours = None if theirs else _same_name(name, work.get("method.name"))
    if ours is None and alias is None and _method_has("lora", name):
        work.drop(key, f"the method {work.get('method.name')} has no such key")
    elif ours is None and alias is None:
        work.decide(key, _UNKNOWN)
    elif ours is None and alias is not None and alias.ours is None:
        leave = work.decide if alias.asks and value is not False else work.drop
        leave(key, alias.note or "not needed")
    elif ours is not None:
        _put(work, key, name, ours, value, None)
    elif alias is not None and alias.ours is not None:
        _put(work, key, name, alias.ours, value, alias.note)


def _put(work: Conversion, key: Key, name: str, ours: str, value: Any, note: str | None) -> None:
    """Set our key to what their value stands for."""
    if ours.startswith("method.") and not _method_has(work.get("method.name"), ours.partition(".")[2]):
        work.drop(key, f"{ours} is no key of the method {work.get('method.name')}")
        return
    unread = _unread_by_loss(work, ours)
    if unread is not None:
        work.drop(key, unread)
        return
    known = VALUES.get(name, {})
    hashable = value if isinstance(value, str | bool | int | float) else None
    if hashable in known:
        meant = known[hashable]
        if meant is None:
            work.drop(key, f"the same as leaving {ours} out")
        else:
            work.put(key, ours, meant, _FLASH if meant == "flash_attention_2" else None)
    elif name in CLOSED:
        instead = _INSTEAD.get(ours, f"{ours} is left at its default")
        work.decide(key, f"{show(value)} has no counterpart here; {instead}", ours)
    elif ours in _BLOCKS or isinstance(value, dict):
        work.decide(key, note or f"see {ours}", ours)
    else:
        work.put(key, ours, _number(value))


def _unread_by_loss(work: Conversion, ours: str) -> str | None:
    """Return why a key of preference losses has no place in the recipe; None where it has, and of other keys."""
    name = ours.removeprefix("training.")
    if name not in HYPERPARAMETERS:
        return None
    loss = PREFERENCE_LOSSES.get(str(work.get("training.loss_type")))
    if loss is None:
        return "only preference tuning reads it"
    return None if name in loss.defaults else f"the loss {work.get('training.loss_type')} has no {name}"


def _number(value: Any) -> Any:
    """Return a text that writes a number as that number, as these tools do."""
    if isinstance(value, str):
        with suppress(ValueError):
            read = read_scalar(value)
            return read if isinstance(read, int | float) and not isinstance(read, bool) else value
    return value


def _same_name(name: str, method: Any) -> str | None:
    """Return our dotted key of the same name, if there is one."""
    if name in _TOP:
        return name
    for block, model in _BLOCKS.items():
        if name in model.model_fields:
            return f"{block}.{name}"
    return f"method.{name}" if name != "name" and _method_has(method, name) else None


def _method_has(method: Any, name: str) -> bool:
    model = registry.params_model(str(method))
    return model is not None and name in model.model_fields
