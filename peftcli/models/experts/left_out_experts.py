"""Experts that no entry of a recipe names: what share of a model they are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from peftcli.layers.added_modules import is_added
from peftcli.layers.quantised.quantised_weights import logical_numbers
from peftcli.models.anatomy import EXPERTS, Anatomy
from peftcli.models.targets.target import Target
from peftcli.models.targets.target_entries import ALL_LINEAR


def experts_note(
    model: nn.Module, anatomy: Anatomy, entries: Sequence[str] | str | None, targets: Iterable[Target]
) -> str | None:
    """Return that `all-linear` leaves the experts out, with their share of the weights; None where it does not.

    Args:
        model: the base, on any device; parts in it do not count.
        anatomy: of the model.
        entries: `target_modules`; None where a method has places of its own.
        targets: what the method changes.
    """
    places = {role.path for role in anatomy.experts}
    if ALL_LINEAR not in (entries or ()) or not places or any(target.place in places for target in targets):
        return None
    inside = {role.path if role.parameter else f"{role.module}.weight" for role in anatomy.experts}
    weights = {name: size for name, size in logical_numbers(model).items() if not is_added(name)}
    share = sum(weights[name] for name in inside if name in weights) / sum(weights.values())
    return (
        f"all-linear leaves the experts out, {share:.1%} of the model's weights; to train them, name them beside it: "
        f"target_modules: [{ALL_LINEAR}, {EXPERTS}]"
    )
