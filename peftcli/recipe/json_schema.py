"""The JSON schema (draft 2020-12) of a recipe, for editors. It is made from the models that check a recipe.

The keys of the method block depend on its `name`: there is one `if`/`then` for each method.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import models_json_schema

from peftcli.recipe.method_facts import Registry
from peftcli.recipe.method_params import MethodParams
from peftcli.recipe.optimizer_table import OPTIMIZERS
from peftcli.recipe.schema import DataSource, DataSpec, DistributedSpec, ModelSpec, Recipe, TrainingSpec
from peftcli.recipe.vocabulary import Names, spelled_out

_BLOCKS: tuple[type[BaseModel], ...] = (Recipe, ModelSpec, DataSpec, DataSource, TrainingSpec, DistributedSpec)
_METHOD = MethodParams.__name__


def recipe_schema(names: Names) -> dict[str, Any]:
    """Return the JSON schema of a recipe with everything that it can name.

    Args:
        names: what a recipe can name.

    Returns:
        A complete document: all references point into its own `$defs`.
    """
    registry = names.methods
    models = {name: model for name in registry.names() if (model := registry.params_model(name)) is not None}
    wanted: list[tuple[type[BaseModel], Literal["validation"]]] = [(model, "validation") for model in models.values()]
    wanted += [(block, "validation") for block in _BLOCKS]
    references, document = models_json_schema(wanted)
    definitions: dict[str, Any] = document["$defs"]
    places = {name: references[(model, "validation")]["$ref"] for name, model in models.items()}
    definitions[_METHOD] = _any_method(registry, places)
    for block, _ in wanted:
        _add_made_defaults(definitions[references[(block, "validation")]["$ref"].rpartition("/")[2]], block)
    _complete(definitions, names)
    recipe = definitions.pop(Recipe.__name__)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "peftcli recipe",
        **{key: value for key, value in recipe.items() if key != "title"},
        "$defs": definitions,
    }


def _any_method(registry: Registry, places: dict[str, str]) -> dict[str, Any]:
    """Return the schema of a method block, whose keys depend on `name`."""
    described = [{"const": name, "description": registry.info(name).summary} for name in places]
    branches = [
        {"if": {"properties": {"name": {"const": name}}, "required": ["name"]}, "then": {"$ref": place}}
        for name, place in places.items()
    ]
    return {
        "type": "object",
        "description": "The method's name and its own hyper-parameters.",
        "required": ["name"],
        "properties": {"name": {"enum": list(places), "oneOf": described}},
        "allOf": branches,
    }


def _add_made_defaults(definition: dict[str, Any], model: type[BaseModel]) -> None:
    """Add the defaults that pydantic leaves out: lists, mappings and blocks, which a factory makes."""
    for name, field in model.model_fields.items():
        if field.default_factory is not None:
            made = field.get_default(call_default_factory=True)
            definition["properties"][name]["default"] = {} if isinstance(made, BaseModel) else made


def _complete(definitions: dict[str, Any], names: Names) -> None:
    """Add the possible values of keys that the models declare as text: tasks, formats, optimizers, metrics."""
    for block in _BLOCKS:
        for key, field in block.model_fields.items():
            spelled = spelled_out(field.annotation, field.metadata, names)
            if spelled is not field.annotation:
                definitions[block.__name__]["properties"][key] |= TypeAdapter(spelled).json_schema()
    training = definitions["TrainingSpec"]["properties"]
    training["optim"]["enum"] = list(OPTIMIZERS)
    training["metrics"]["items"]["enum"] = sorted(set().union(*names.metrics.values()))
