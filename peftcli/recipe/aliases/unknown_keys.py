"""What to write instead of an unknown key: the same key elsewhere, ours for another tool's, or the nearest one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from peftcli.recipe.aliases.all_aliases import ALIASES, Alias
from peftcli.recipe.method_facts import Registry
from peftcli.recipe.method_params import MethodParams
from peftcli.recipe.schema import DataSpec, DistributedSpec, ModelSpec, Recipe, TrainingSpec
from peftcli.recipe.yaml.scalars import show
from peftcli.recipe.yaml.value_tree import dotted
from peftcli.recipe.yaml.yaml_lines import Key
from peftcli.suggestions import did_you_mean, nearest

_BLOCKS: dict[str, type[BaseModel]] = {
    "model": ModelSpec,
    "data": DataSpec,
    "training": TrainingSpec,
    "distributed": DistributedSpec,
}
_NEAR = 0.72  # difflib's ratio: `learning_rat`, `lora_aplha` and `bias_terms` are above, unrelated words below
_NEAR_ELSEWHERE = 0.85  # a key of another block must be nearer


class UnknownKeys:
    """Suggests what to write instead of the unknown keys of a recipe.

    Args:
        registry: the methods.
        method: the recipe's `method.name`, if there is such a method.
    """

    def __init__(self, registry: Registry, method: str | None) -> None:
        self.registry = registry
        self.method = method

    def suggest(self, key: Key, value: Any, block: type[BaseModel]) -> str:
        """Return what to write instead of the unknown `key` of a `block`."""
        name = str(key[-1])
        plain = name.strip().lower().replace("-", "_")
        in_method = issubclass(block, MethodParams)
        return (
            self._same_block(name, plain, block)
            or self._alias(ALIASES.get(plain), plain, key, value, block)
            or (self._other_method(plain, block) if in_method else None)
            or self._other_place(plain, key)
            or self._dotted(name, key)
            or self._near(plain, block)
            or self._list(block, key)
        )

    def _same_block(self, name: str, plain: str, block: type[BaseModel]) -> str | None:
        """Return a key of the block that differs only in case, hyphens or spaces."""
        return did_you_mean([f"`{plain}`"]) if plain != name and plain in block.model_fields else None

    def _alias(self, alias: Alias | None, name: str, key: Key, value: Any, block: type[BaseModel]) -> str | None:
        if alias is None:
            return None
        note = f" ({alias.note})" if alias.note and alias.ours else alias.note or ""
        if alias.ours is None:
            return f"`{name}` is a name of {alias.tools}: {note}"
        head, _, last = alias.ours.rpartition(".")
        here = head == key[0] and last in block.model_fields  # of the same block, or of one inside it
        ours = dotted((*key[:-1], last)) if here else alias.ours
        if issubclass(block, MethodParams) and head == "method" and last == "name" and name == "type":
            return did_you_mean(["`name`"])
        if head == "method" and not here and self.method and last != "name" and not self._has(self.method, last):
            owners = self._owners(last)
            other = f"; a key of {', '.join(owners)}, not of {self.method}" if owners else ""
            return f"`{name}` of {alias.tools} is `{last}` here{other}. {self._list(block, key)}"
        example = (
            ""
            if note or value is None or isinstance(value, (dict, list))
            else f", for instance `{last}: {_plain(value)}`"
        )
        place = f": write it under `{head}:`{example}" if head and not here and not note else ""
        return f"`{name}` of {alias.tools} is `{ours}` here{note}{place}"

    def _other_place(self, name: str, key: Key) -> str | None:
        for place in self._places(name):
            if place[:-1] != key[:-1]:
                where = f"under `{dotted(place[:-1])}:`" if len(place) > 1 else "at the top level"
                return f"`{name}` belongs {where}, as `{dotted(place)}`"
        return None

    def _places(self, name: str) -> Iterator[Key]:
        if name in Recipe.model_fields:
            yield (name,)
        for head, block in _BLOCKS.items():
            if name in block.model_fields:
                yield (head, name)
        if self.method and self._has(self.method, name):
            yield ("method", name)
        elif owners := self._owners(name):
            yield ("method", name) if self.method is None else (f"method, of {' or '.join(owners)}", name)

    def _other_method(self, name: str, block: type[BaseModel]) -> str | None:
        owners = self._owners(name)
        if not owners:
            return None
        return f"`{name}` is a key of {', '.join(owners)}; {_own_name(block)} has: {', '.join(_own_keys(block))}"

    def _dotted(self, name: str, key: Key) -> str | None:
        parts = name.split(".")
        if len(parts) < 2 or parts[0] not in Recipe.model_fields or len(key) > 1:
            return None
        return f"write `{parts[-1]}:` under `{'.'.join(parts[:-1])}:` (dotted paths are for the command line)"

    def _near(self, name: str, block: type[BaseModel]) -> str | None:
        close = nearest(name, block.model_fields, cutoff=_NEAR)
        if close:
            return did_you_mean([f"`{close[0]}`"])
        elsewhere: dict[str, Key] = {
            field: (head, field) for head, spec in _BLOCKS.items() for field in spec.model_fields
        }
        elsewhere |= {field: (field,) for field in Recipe.model_fields}
        if self.method and (model := self.registry.params_model(self.method)):
            elsewhere |= {field: ("method", field) for field in model.model_fields if field != "name"}
        foreign = nearest(name, [*elsewhere, *ALIASES], cutoff=_NEAR_ELSEWHERE)
        if not foreign:
            return None
        ours = dotted(elsewhere[foreign[0]]) if foreign[0] in elsewhere else ALIASES[foreign[0]].ours
        return did_you_mean([f"`{ours}`"]) if ours else None

    def _list(self, block: type[BaseModel], key: Key) -> str:
        where = f"`{dotted(key[:-1])}`" if len(key) > 1 else "a recipe"
        return f"the keys of {where} are: {', '.join(_own_keys(block))}"

    def _has(self, method: str, name: str) -> bool:
        model = self.registry.params_model(method)
        return model is not None and name in model.model_fields

    def _owners(self, name: str) -> list[str]:
        """Return the methods that have a hyper-parameter; imports them all, so only for a key that is wrong."""
        return [method for method in self.registry.names() if self._has(method, name)]


def _own_name(block: type[BaseModel]) -> str:
    return str(block.model_fields["name"].default) if "name" in block.model_fields else block.__name__


def _own_keys(block: type[BaseModel]) -> list[str]:
    return list(block.model_fields)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) and len(value) < 40 and value else show(value)
