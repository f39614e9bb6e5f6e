"""What the methods with a bottleneck share: its size, the residual branches it goes to, and trained norms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field, model_validator

from peftcli.recipe.method_params import MethodParams, Positive

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

    from peftcli.models.anatomy import Anatomy, BlockRole


class BottleneckParams(MethodParams):
    """The size of a bottleneck: given, or as a share of the hidden size."""

    bottleneck_size: Positive | None = None
    """Width of the bottleneck; null takes hidden size / reduction_factor."""
    reduction_factor: Annotated[float, Field(ge=1.0)] | None = None
    """Hidden size over bottleneck; only without bottleneck_size."""

    @model_validator(mode="after")
    def _one_size(self) -> BottleneckParams:
        if self.bottleneck_size is not None and self.reduction_factor is not None:
            raise ValueError("bottleneck_size and reduction_factor say the same thing twice; give one of them")
        return self

    def size_for(self, width: int, default_factor: float) -> int:
        """Return the bottleneck for hidden states of `width`; at least 1."""
        if self.bottleneck_size is not None:
            return self.bottleneck_size
        return max(1, round(width / (self.reduction_factor or default_factor)))


def branches(anatomy: Anatomy, kinds: Iterable[str]) -> list[BlockRole]:
    """Return the residual branches of these kinds, in the order of depth."""
    wanted = set(kinds)
    return [block for block in anatomy.blocks if block.kind in wanted]


def bottleneck_problems(anatomy: Anatomy, params: BottleneckParams, kinds: Iterable[str]) -> list[str]:
    """Return why no bottleneck fits: no such branch was found, or it has more than four times the hidden size."""
    kinds = tuple(kinds)
    if not branches(anatomy, kinds):
        return [
            f"no {' or '.join(kinds)} branch was found in this {anatomy.family} model that an adapter could be put at; "
            "name the module that ends it in model.anatomy, or use lora with target_modules: all-linear"
        ]
    narrowest = min((block.width for block in branches(anatomy, kinds)), default=anatomy.hidden_size)
    if params.bottleneck_size is None or params.bottleneck_size <= 4 * narrowest:
        return []
    return [
        f"bottleneck_size = {params.bottleneck_size} is more than four times the hidden size {narrowest}; "
        f"use at most {4 * narrowest}"
    ]


def norm_parameters(model: nn.Module, anatomy: Anatomy) -> list[str]:
    """Return the names of every norm's parameters, the embeddings' norm included, and let them train."""
    names = [
        f"{path}.{name}"
        for path in anatomy.norms
        for name, _ in model.get_submodule(path).named_parameters(recurse=False)
        if f"{path}.{name}" not in anatomy.untouched
    ]
    for name in names:
        model.get_parameter(name).requires_grad_(True)
    return names
