"""The projections that a method with `target_modules` changes, each with its view of the frozen weights."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from peftcli.errors import Problem, UserError
from peftcli.layers.base_linear import BaseLinear
from peftcli.models.anatomy import Anatomy
from peftcli.models.experts.named_experts import ExpertChoice
from peftcli.models.targets.target import Target
from peftcli.models.targets.target_modules import resolve_targets
from peftcli.recipe.method_params import TargetedParams


def projections(model: nn.Module, anatomy: Anatomy, params: TargetedParams) -> list[tuple[Target, BaseLinear]]:
    """Return the targets of a method that works on the projections of modules only.

    Args:
        model: the live model, on any device.
        anatomy: its roles.
        params: where the method goes.

    Raises:
        UserError: an entry matches nothing, an embedding table, or experts in a 3-D parameter.
    """
    return views(model, projection_targets(model, anatomy, params))


def projection_targets(
    model: nn.Module,
    anatomy: Anatomy,
    params: TargetedParams,
    entries: list[str] | str | None = None,
    experts: ExpertChoice | None = None,
) -> list[Target]:
    """Return the targets of a method that works on projections only.

    Args:
        model: the live model, on any device.
        anatomy: its roles.
        params: where the method goes.
        entries: instead of `params.target_modules`.
        experts: which of them, for a method that can change 3-D parameters.

    Raises:
        UserError: an entry matches nothing, or an embedding table.
    """
    targets = resolve_targets(
        model,
        anatomy,
        params.target_modules if entries is None else entries,
        exclude=params.exclude_modules,
        layers=params.layers_to_transform,
        experts=experts,
    )
    tables = [target.module for target in targets if target.kind == "embedding"]
    if tables:
        message = f"{params.name} changes projections; {', '.join(tables)} is an embedding table"
        raise UserError(Problem(message, key="method.target_modules", suggestion="leave it out, or use lora there"))
    return targets


def views(model: nn.Module, targets: Iterable[Target]) -> list[tuple[Target, BaseLinear]]:
    """Return the targets that are modules, each with its view of the frozen weights."""
    modules = [target for target in targets if target.kind != "experts"]
    return [(target, BaseLinear(model.get_submodule(target.module), target.slice)) for target in modules]
