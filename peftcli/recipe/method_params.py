"""The base classes of a recipe's blocks and of the methods' hyper-parameters."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, field_validator

LARGEST = 2**31 - 1
"""Of every size and count in a recipe: tensors with a larger side cannot be made."""
Positive = Annotated[int, Field(ge=1, le=LARGEST)]
NotNegative = Annotated[int, Field(ge=0, le=LARGEST)]
SEEDS = 2**63
"""How many seeds torch takes."""
Seed = Annotated[int, Field(ge=0, lt=SEEDS)]


IN_ORDER = "in order"
"""Marks a field, in its `Annotated` type, whose mapping's order counts: the first key that matches decides."""


class Block(BaseModel):
    """A block of the recipe: unknown keys are errors, types are not coerced, values are frozen."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def keys_in_order(block: type[BaseModel]) -> set[str]:
    """Return the fields of a block that are marked with `IN_ORDER`."""
    return {name for name, field in block.model_fields.items() if IN_ORDER in field.metadata}


class MethodParams(Block):
    """The hyper-parameters that every method has; each method has a subclass with its own.

    A subclass overrides `name` with its own `Literal` default.
    """

    name: str
    """The method, one of `peft methods`."""
    modules_to_save: list[str] | None = None
    """Modules that are trained in full and saved with the adapter, by full path or by the end of the path."""
    trainable_token_indices: list[NotNegative] | list[str] | dict[str, list[NotNegative] | list[str]] | None = None
    """Rows of the token embeddings to train, by number or token; or a list for each of `embeddings` and `head`."""
    init_from: str | None = None
    """A run or an adapter directory whose weights this training starts from."""

    @field_validator("trainable_token_indices")
    @classmethod
    def _names_a_token(cls, value: Any) -> Any:
        lists = value.values() if isinstance(value, dict) else [value]
        if value is not None and not (lists and all(lists)):
            raise ValueError("an empty list trains no row; leave the key out")
        return value

    def idle_keys(self) -> dict[str, str]:
        """Return the keys that have no effect beside the others, each with the reason; they are named if written."""
        return {}

    def needs_quantised_base(self) -> tuple[str, str] | None:
        """Return the key that goes only with a base that is quantised while it is loaded, and why; None without."""
        return None

    def open_sizes(self) -> str | None:
        """Return why sizes are known only after a run has read its first rows; None where they are known before."""
        return None

    def after(self, earlier: MethodParams) -> MethodParams:
        """Return these hyper-parameters for a training that starts from an adapter (`init_from`).

        Args:
            earlier: of that adapter; what training decided there (ranks) is taken over.
        """
        return self


AnyMethod = SerializeAsAny[MethodParams]
"""A field of a composition that takes any method: written as a block with the method's `name`, read by the registry."""


class TargetedParams(MethodParams):
    """Hyper-parameters of the methods that change chosen projections."""

    target_modules: list[str] | str = Field(default_factory=lambda: ["attn.q", "attn.v"])
    """The projections: roles (attn.q, ffn.up, attn, ffn), module names, `all-linear`, or one regular expression."""
    exclude_modules: list[str] | str | None = None
    """Module names, or one regular expression, to leave out of what `target_modules` matches."""
    layers_to_transform: list[NotNegative] | NotNegative | None = None
    """Numbers of the blocks to change, counted from 0; null is all."""

    @field_validator("target_modules", "exclude_modules")
    @classmethod
    def _names_something(cls, value: list[str] | str | None) -> list[str] | str | None:
        if value == [] and "target_parameters" in cls.model_fields:
            return value  # such a method says itself what must be named then
        for name in [value] if isinstance(value, str) else value or ():
            if name.lower().replace("_", "-") in ("all", "all-linear") and name != "all-linear":
                raise ValueError(f"no module is named {name!r}; did you mean all-linear?")
        return names_something(value, "roles such as attn.q, module names, all-linear, or a pattern")

    @field_validator("layers_to_transform")
    @classmethod
    def _names_a_block(cls, value: list[int] | int | None) -> list[int] | int | None:
        return _numbers(value, "block")


class ExpertParams(TargetedParams):
    """Hyper-parameters of the methods that also change experts in 3-D parameters."""

    experts_to_transform: list[NotNegative] | NotNegative | None = None
    """Numbers of the experts to change, counted from 0, where experts are named; null is all."""

    @field_validator("experts_to_transform")
    @classmethod
    def _names_an_expert(cls, value: list[int] | int | None) -> list[int] | int | None:
        return _numbers(value, "expert")

    @property
    def experts(self) -> set[int] | None:
        """The numbers of the experts to change, where experts are named; None for all."""
        numbers = self.experts_to_transform
        return numbers if numbers is None else {numbers} if isinstance(numbers, int) else set(numbers)


def _numbers(value: list[int] | int | None, what: str) -> list[int] | int | None:
    if value == []:
        raise ValueError(f"an empty list leaves no {what}; leave the key out for all")
    return value


def names_something(value: list[str] | str | None, expected: str) -> list[str] | str | None:
    """Return names of modules, or one regular expression, as they are; null, too.

    Raises:
        ValueError: there is no name, or the expression cannot be read; says what is expected.
    """
    if value is None:
        return value
    if not value or not all(value):
        raise ValueError(f"names nothing; expected {expected}")
    if isinstance(value, str):
        try:
            re.compile(value)
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"{value!r} is not a regular expression: {error}") from error
    return value
