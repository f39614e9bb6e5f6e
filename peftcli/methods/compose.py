"""Any combination of methods: parts on one model, optionally under gates.

The parts are attached in order and trained together. At one place low-rank changes and IA3 come first, then serial
adapters; within a kind the order of the list counts. These are refused, with the reason: two parts of one kind at one
place, DoRA together with another change of its projection, and a method that trains the base itself.

With `gates: true` every part is scaled by sigmoid(w^T x + b) of what it sees, as in UniPELT; a gate takes the place
of the part's own scale (LoRA's alpha / r, a parallel adapter's scaling).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from peftcli.protocol.composite_method import CompositeMethod
from peftcli.protocol.composition import CompositeParams, PartSpec, labelled, why_no_part
from peftcli.protocol.method import MethodInfo
from peftcli.protocol.registry import registry
from peftcli.recipe.method_params import AnyMethod, MethodParams


class ComposeParams(CompositeParams):
    """Hyper-parameters of a composition."""

    name: Literal["compose"] = "compose"
    parts: list[AnyMethod] = Field(min_length=1)
    """The methods, each a block with its name and hyper-parameters."""
    gates: bool = False
    """Scale every part by a learnt gate on what it sees."""

    @field_validator("parts", mode="before")
    @classmethod
    def _typed(cls, value: Any) -> Any:
        """Give plain data its method's own type: a recipe comes typed, a saved adapter's record does not."""
        if not isinstance(value, list):
            return value
        return [_typed_part(part) if isinstance(part, dict) else part for part in value]

    @model_validator(mode="after")
    def _parts_combine(self) -> ComposeParams:
        reasons = ["a compose part cannot be a compose itself; list its parts here"] * any(
            isinstance(part, ComposeParams) for part in self.parts
        )
        known = [part for part in self.parts if part.name != "?"]  # the recipe's placeholder for one that is wrong
        reasons += [reason for part in known if not isinstance(part, ComposeParams) and (reason := why_no_part(part))]
        if reasons:
            raise ValueError("; ".join(dict.fromkeys(reasons)))
        return self

    @property
    def specs(self) -> list[PartSpec]:
        """The parts with their labels."""
        return labelled(self.parts, self.gates)

    def with_parts(self, parts: Mapping[str, MethodParams]) -> MethodParams:
        """Return these hyper-parameters with other ones of the parts, by label."""
        return self.model_copy(update={"parts": [parts[spec.label] for spec in self.specs]})

    def after(self, earlier: MethodParams) -> MethodParams:
        """Return these hyper-parameters with what each part takes over from the earlier part in its place."""
        if not isinstance(earlier, ComposeParams) or len(earlier.parts) != len(self.parts):
            return self
        parts = [own.after(before) for own, before in zip(self.parts, earlier.parts, strict=True)]
        return self.model_copy(update={"parts": parts})


def _typed_part(part: dict[str, Any]) -> Any:
    name = part.get("name")
    model = registry.params_model(name) if isinstance(name, str) else None
    return part if model is None else model.model_validate(part)


METHOD = CompositeMethod(
    MethodInfo(
        name="compose",
        family="hybrid",
        summary="Any list of methods together, optionally under gates.",
        paper="this project, after He et al. 2021, arXiv:2110.04366, and Mao et al. 2021, arXiv:2110.07577",
        params=ComposeParams,
        learning_rate=2e-3,  # that of its parts on the demo: half of it is slow within one epoch
    )
)
