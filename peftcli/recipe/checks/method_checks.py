"""A recipe's methods: whether they go with its task and its base."""

from __future__ import annotations

from collections.abc import Iterator

from peftcli.recipe.method_params import MethodParams
from peftcli.recipe.pydantic_messages import Finding
from peftcli.recipe.schema import Recipe
from peftcli.recipe.vocabulary import Names
from peftcli.recipe.yaml.yaml_lines import Key


def check_methods(recipe: Recipe, names: Names) -> Iterator[Finding]:
    """Yield where a method does not go with the task or with a quantised base."""
    model, registry = recipe.model, names.methods
    forced = False
    for key, params in methods_of(recipe.method):
        if registry.params_model(params.name) is None:
            continue  # named already
        name, info = params.name, registry.info(params.name)
        forced = forced or info.forces_4bit
        if info.tasks and recipe.task not in info.tasks:
            reason = f"the method {name} does not serve the task {recipe.task}"
            place = ("task",) if key == ("method",) else (*key, "name")
            yield Finding(place, reason, f"it serves {', '.join(sorted(info.tasks))}")
        quantised = [option for option in ("load_in_4bit", "load_in_8bit") if getattr(model, option)]
        if quantised and not info.quantised_base:
            reason = f"the method {name} cannot train on a quantised base (model.{quantised[0]})"
            yield Finding(("model", quantised[0]), reason, "write false, or choose another method: `peft methods`")
        needs = params.needs_quantised_base()
        if needs is not None and not quantised and not info.forces_4bit:
            yield Finding((*key, needs[0]), needs[1], "write model.load_in_4bit: true, or another value")
        if model.load_in_8bit and info.forces_4bit:
            yield Finding(("model", "load_in_8bit"), f"the method {name} uses a 4-bit base, not model.load_in_8bit")
    yield from _quantisation(recipe, forced)


def methods_of(params: MethodParams, key: Key = ("method",)) -> Iterator[tuple[Key, MethodParams]]:
    """Yield a method and, of a composition, the methods inside it, each with its key."""
    yield key, params
    for field in type(params).model_fields:
        value = getattr(params, field)
        inner = enumerate(value) if isinstance(value, list) else [(None, value)]
        for index, part in inner:
            if isinstance(part, MethodParams):
                yield from methods_of(part, (*key, field) if index is None else (*key, field, index))


def _quantisation(recipe: Recipe, forced: bool) -> Iterator[Finding]:
    model = recipe.model
    if model.load_in_4bit or forced:
        return
    for key, default in (("bnb_4bit_quant_type", "nf4"), ("bnb_4bit_compute_dtype", "auto")):
        if getattr(model, key) != default:
            yield Finding(
                ("model", key), f"model.{key} does nothing without model.load_in_4bit", "write load_in_4bit: true"
            )
