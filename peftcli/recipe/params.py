"""The base of every block of a recipe, and of every method's hyper-parameters."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Block(BaseModel):
    """A block of the recipe: unknown keys are errors, types are not coerced, values are frozen."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)


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


class TargetedParams(MethodParams):
    """Shared by the methods that choose projections: where they go, in roles or module names."""

    target_modules: list[str] | str = Field(default_factory=lambda: ["attn.q", "attn.v"])
    """Roles (attn.q, ffn.up, attn, ffn), module names, `all-linear`, or one regular expression (a string)."""
    exclude_modules: list[str] | str | None = None
    """Module names or one regular expression, taken out of what `target_modules` matched."""
    layers_to_transform: list[int] | int | None = None
    """Block numbers, from 0, to stay within."""
