"""The projections that a method with `target_modules` changes, each with its view of the frozen weights."""

from __future__ import annotations

from torch import nn

from peftcli.errors import Problem, UserError
from peftcli.layers.base_linear import BaseLinear, base_linear
from peftcli.models.anatomy import Anatomy
from peftcli.models.targets.target import Target
from peftcli.models.targets.target_modules import resolve_targets
from peftcli.recipe.method_params import TargetedParams


def projections(
    model: nn.Module, anatomy: Anatomy, params: TargetedParams, entries: list[str] | str | None = None
) -> list[tuple[Target, BaseLinear]]:
    """Return the targets of a method that works on projections only.

    Args:
        model: the live model, on any device.
        anatomy: its roles.
        params: where the method goes.
        entries: instead of `params.target_modules`.

    Raises:
        UserError: an entry matches nothing, or an embedding table.
    """
    targets = resolve_targets(
        model,
        anatomy,
        params.target_modules if entries is None else entries,
        exclude=params.exclude_modules,
        layers=params.layers_to_transform,
    )
    tables = [target.module for target in targets if target.kind == "embedding"]
    if tables:
        message = f"{params.name} changes projections; {', '.join(tables)} is an embedding table"
        raise UserError(Problem(message, key="method.target_modules", suggestion="leave it out, or use lora there"))
    return [(target, base_linear(model.get_submodule(target.module), target.slice)) for target in targets]
