"""Turn the plain data of a recipe file into a typed `Recipe`, and collect everything that is wrong with it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, get_args, get_origin

from pydantic import ValidationError

from peftcli.recipe.aliases.unknown_keys import UnknownKeys
from peftcli.recipe.field_descriptions import members, unwrap
from peftcli.recipe.method_params import MethodParams
from peftcli.recipe.pydantic_messages import Finding, findings, method_hint
from peftcli.recipe.schema import Recipe
from peftcli.recipe.vocabulary import Names
from peftcli.recipe.yaml.scalars import show
from peftcli.recipe.yaml.value_tree import dotted
from peftcli.recipe.yaml.yaml_lines import Key

PLACEHOLDER = MethodParams(name="?")
"""Takes the place of a method that could not be read, so that the rest of the recipe is still checked."""


class Builder:
    """Turns the data of one recipe into a `Recipe`.

    Args:
        names: what a recipe can name.
        data: the recipe's top-level mapping.
    """

    def __init__(self, names: Names, data: dict[str, Any]) -> None:
        self.names, self.registry = names, names.methods
        self.data = data
        self.found: list[Finding] = []
        self.replaced: set[str] = set()
        self._kept: dict[str, Any] = {}
        method = data.get("method")
        name = method.get("name") if isinstance(method, dict) else None
        known = isinstance(name, str) and self.registry.params_model(name) is not None
        self.unknown = UnknownKeys(self.registry, str(name) if known else None)

    def build(self) -> Recipe | None:
        """Return the recipe without its wrong values, or None if what is left is no recipe.

        `found` holds what was wrong. If there is anything in it, the recipe is good for further checks only.
        """
        data = dict(self.data)
        if "method" in data:
            data["method"] = self.method(data["method"], ("method",))
        try:
            return Recipe.model_validate(data, context=self.names)
        except ValidationError as error:
            new = findings(error, Recipe, data, (), self.unknown, self.names)
        self.found += new
        self._kept = _without(data, [finding.key for finding in new])
        try:
            return Recipe.model_validate(self._kept, context=self.names)
        except ValidationError:
            return None

    def remains(self) -> Recipe | None:
        """Return what can be read where `build` returned None, with wrong blocks left out or replaced.

        The files that it names are those of the readable blocks; do not rely on anything else in it. `replaced` holds
        the blocks that something else stands in for.
        """
        data = self._kept
        task = next(iter(self.names.tasks))
        stand_ins: dict[str, Any] = {"model": {"name_or_path": "?"}, "task": task, "method": PLACEHOLDER}
        for _ in range(2):  # a replaced block may contradict another one, which is then replaced, too
            try:
                return Recipe.model_validate(data, context=self.names)
            except ValidationError as error:
                blocks = {detail["loc"][0] for detail in error.errors(include_url=False) if detail["loc"]}
            self.replaced |= {str(block) for block in blocks}
            data = {key: value for key, value in data.items() if key not in blocks} | {
                key: value for key, value in stand_ins.items() if key in blocks
            }
        return None

    def method(self, value: Any, key: Key) -> MethodParams:
        """Return the hyper-parameters of the method at `key`, or the placeholder."""
        model = self._method_model(value, key)
        if model is None:
            return PLACEHOLDER
        data = self._nested(model, value, key)
        try:
            return model.model_validate(data)
        except ValidationError as error:
            self.found += findings(error, model, data, key, self.unknown, self.names)
            return PLACEHOLDER

    def _method_model(self, value: Any, key: Key) -> type[MethodParams] | None:
        names = self.registry.names()
        if not isinstance(value, dict):
            suggestion = f"write `{{name: {value}}}`" if value in names else f"for instance `name: {names[0]}` below it"
            self._add(key, f"{dotted(key)} = {show(value)}; expected a mapping with the method's name", suggestion)
            return None
        name = value.get("name")
        if "name" not in value:
            near = next((word for word in ("type", "peft_type", "method", "adapter") if word in value), None)
            told = f"`{near}` is called `name` here; " if near else ""
            self._add((*key, "name"), f"{dotted(key)}.name is missing", f"{told}choose one of: {', '.join(names)}")
            return None
        model = self.registry.params_model(name) if isinstance(name, str) and name else None
        if model is None:
            suggestion = method_hint(str(name), names)
            self._add((*key, "name"), f"{dotted(key)}.name = {show(name)}; there is no such method", suggestion)
        return model

    def _nested(self, model: type[MethodParams], data: dict[str, Any], key: Key) -> dict[str, Any]:
        """Return `data` with each method inside a composition replaced by its hyper-parameters."""
        made = dict(data)
        for field, info in model.model_fields.items():
            value = data.get(field)
            if isinstance(value, dict) and _holds_method(info.annotation):
                made[field] = self.method(value, (*key, field))
            elif isinstance(value, list) and _holds_methods(info.annotation):
                made[field] = [self.method(item, (*key, field, index)) for index, item in enumerate(value)]
        return made

    def _add(self, key: Key, message: str, suggestion: str | None = None) -> None:
        self.found.append(Finding(key, message, suggestion))


def _holds_method(annotation: Any) -> bool:
    """Return whether a field takes any method: it is annotated with `MethodParams` itself."""
    return any(unwrap(member)[0] is MethodParams for member in members(annotation))


def _holds_methods(annotation: Any) -> bool:
    for member in members(annotation):
        plain, _ = unwrap(member)
        if get_origin(plain) is list and _holds_method(get_args(plain)[0]):
            return True
    return False


def _without(data: dict[str, Any], keys: Sequence[Key]) -> dict[str, Any]:
    """Return a copy of the recipe's data without `keys`."""
    kept = {field: value if isinstance(value, MethodParams) else copy.deepcopy(value) for field, value in data.items()}
    kept.setdefault("method", PLACEHOLDER)
    for key in sorted(keys, key=len, reverse=True):
        _drop(kept, key)
    return kept


def _drop(data: Any, key: Key) -> None:
    for part in key[:-1]:
        if not isinstance(data, (dict, list)):
            return
        try:
            data = data[part]  # type: ignore[index]  # dict by name, list by position
        except (KeyError, IndexError):
            return
    if isinstance(data, dict):
        data.pop(key[-1], None)
