"""The base of every block of a recipe, and of every method's hyper-parameters."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, field_validator

NotNegative = Annotated[int, Field(ge=0)]


class Block(BaseModel):
    """A block of the recipe: unknown keys are errors, types are not coerced, values are frozen."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class MethodParams(Block):
    """What every method takes; each method subclasses this with its own bounded hyper-parameters.

    A subclass overrides `name` with its own `Literal` default.
    """

    name: str
    """The method, one of `peft methods`."""
    modules_to_save: list[str] | None = None
    """Modules, by full path or trailing path, trained whole beside the method and saved with it."""
    init_from: str | None = None
    """A run or adapter directory whose weights start this training."""


AnyMethod = SerializeAsAny[MethodParams]
"""A field of a composition that takes any method: written as a block with the method's `name`, read by the registry."""


class TargetedParams(MethodParams):
    """Shared by the methods that choose projections: where they go, in roles or module names."""

    target_modules: list[str] | str = Field(default_factory=lambda: ["attn.q", "attn.v"])
    """Roles (attn.q, ffn.up, attn, ffn), module names, `all-linear`, or one regular expression (a string)."""
    exclude_modules: list[str] | str | None = None
    """Module names or one regular expression, taken out of what `target_modules` matched."""
    layers_to_transform: list[NotNegative] | NotNegative | None = None
    """Block numbers, from 0, to stay within."""

    @field_validator("target_modules", "exclude_modules")
    @classmethod
    def _names_something(cls, value: list[str] | str | None) -> list[str] | str | None:
        if value is None:
            return value
        if not value or not all(value):
            raise ValueError("names nothing; expected roles such as attn.q, module names, all-linear, or a pattern")
        if isinstance(value, str):
            try:
                re.compile(value)
            except (re.error, RecursionError, OverflowError) as error:
                raise ValueError(f"{value!r} is not a regular expression: {error}") from error
        return value

    @field_validator("layers_to_transform")
    @classmethod
    def _names_a_block(cls, value: list[int] | int | None) -> list[int] | int | None:
        if value == []:
            raise ValueError("an empty list leaves no block; leave the key out for all")
        return value
