"""The values that a key accepts, in words, from the type of its field: `a number, 0 <= value < 1`."""

from __future__ import annotations

import types
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from peftcli.recipe.method_params import LARGEST, SEEDS, MethodParams
from peftcli.recipe.yaml.scalars import show
from peftcli.recipe.yaml.yaml_lines import Key


def unwrap(annotation: Any) -> tuple[Any, list[Any]]:
    """Return an annotation without `Annotated`, and its metadata."""
    metadata: list[Any] = []
    while get_origin(annotation) is Annotated:
        annotation, *shell = get_args(annotation)
        for item in shell:
            metadata += item.metadata if isinstance(item, FieldInfo) else [item]
    return annotation, metadata


def members(annotation: Any) -> list[Any]:
    """Return the members of a union, or the annotation itself."""
    plain, _ = unwrap(annotation)
    return list(get_args(plain)) if get_origin(plain) in (Union, types.UnionType) else [annotation]


def block_of(annotation: Any) -> type[BaseModel] | None:
    """Return the model class that an annotation allows, if any."""
    for member in members(annotation):
        plain, _ = unwrap(member)
        if isinstance(plain, type) and issubclass(plain, BaseModel):
            return plain
    return None


def field_at(block: type[BaseModel], key: Key) -> tuple[Any, list[Any]] | None:
    """Return the annotation and the constraints of `key` in `block`, or None if there is no such key."""
    if not key:
        return block, []
    first = block.model_fields.get(str(key[0]))
    if first is None:
        return None
    annotation, metadata = first.annotation, list(first.metadata)
    for position, part in enumerate(key[1:], 1):
        inner = block_of(annotation)
        if inner is not None and isinstance(part, str):
            return field_at(inner, key[position:])
        element = _element(annotation, part)
        if element is None:
            return None
        annotation, metadata = unwrap(element)
    return annotation, metadata


def block_at(block: type[BaseModel], key: Key) -> type[BaseModel] | None:
    """Return the model class of the mapping at `key` in `block`."""
    found = field_at(block, key)
    return block_of(found[0]) if found else None


def _element(annotation: Any, part: str | int) -> Any:
    for member in members(annotation):
        plain, _ = unwrap(member)
        arguments = get_args(plain)
        if isinstance(part, int) and get_origin(plain) is list:
            return arguments[0]
        if isinstance(part, str) and get_origin(plain) is dict:
            return arguments[1]
    return None


def bounds(metadata: Sequence[Any]) -> str | None:
    """Return the numeric limits as `0 <= value < 1`, or None."""
    low = high = None
    for item in metadata:  # annotated_types' Ge, Gt, Le, Lt, by their one attribute
        if hasattr(item, "ge"):
            low = f"{_number(item.ge)} <= "
        elif hasattr(item, "gt"):
            low = f"{_number(item.gt)} < "
        elif hasattr(item, "le"):
            high = f" <= {_number(item.le)}"
        elif hasattr(item, "lt"):
            high = f" < {_number(item.lt)}"
    if low and not high:
        return f"value {'>=' if '=' in low else '>'} {low.split()[0]}"
    return f"{low or ''}value{high or ''}" if low or high else None


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def choices(annotation: Any) -> list[str]:
    """Return the literals of an annotation as text, without null."""
    found: list[str] = []
    for member in members(annotation):
        plain, _ = unwrap(member)
        if get_origin(plain) is Literal:
            found += [str(value) for value in get_args(plain)]
    return found


def describe(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """Return in words which values a type has."""
    plain, inner = unwrap(annotation)
    constraints = [*metadata, *inner]
    alternatives = members(plain)
    if len(alternatives) > 1:
        words = [describe(member, constraints) for member in alternatives if member is not type(None)]
        words += ["null"] if type(None) in alternatives else []
        return " or ".join(dict.fromkeys(words))
    return _describe_one(plain, constraints)


def _describe_one(plain: Any, constraints: Sequence[Any]) -> str:
    origin, arguments = get_origin(plain), get_args(plain)
    if origin is Literal:
        words = [value if isinstance(value, str) else show(value) for value in arguments]
        return words[0] if len(words) == 1 else f"one of {', '.join(words)}"
    if origin is list or plain is list:
        return f"a list of {_plural(arguments[0])}" if arguments else "a list"
    if origin is dict:
        return f"a mapping of text to {describe(arguments[1])}"
    if isinstance(plain, type) and issubclass(plain, MethodParams):
        return "a mapping with the method's name and hyper-parameters"
    if isinstance(plain, type) and issubclass(plain, BaseModel):
        needed = [name for name, field in plain.model_fields.items() if field.is_required()]
        return f"a mapping with at least {', '.join(needed)}" if needed else "a mapping"
    word = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}.get(plain, "another value")
    limits = bounds([each for each in constraints if not of_the_machine(each)])
    return f"{word}, {limits}" if limits and plain in (int, float) else word


def of_the_machine(constraint: Any) -> bool:
    """Tell whether a limit is where sizes and seeds end on every machine, which says nothing about the field."""
    return getattr(constraint, "le", None) == LARGEST or getattr(constraint, "lt", None) == SEEDS


def _plural(annotation: Any) -> str:
    plain, _ = unwrap(annotation)
    plurals = {int: "whole numbers", float: "numbers", str: "texts"}
    return plurals.get(plain) or describe(annotation)
