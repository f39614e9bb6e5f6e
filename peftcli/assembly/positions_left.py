"""How many positions of a model a method leaves to the rows."""

from __future__ import annotations

from peftcli.models.anatomy import Anatomy
from peftcli.protocol.registry import registry
from peftcli.recipe.method_params import MethodParams


def positions_left(anatomy: Anatomy, params: MethodParams) -> int | None:
    """Return how many positions of the model a row can take beside the method's own; None without such a limit."""
    if anatomy.max_positions is None:
        return None
    return anatomy.max_positions - registry.method(params.name).positions_taken(anatomy, params)
