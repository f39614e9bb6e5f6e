"""What the first backward pass did not reach: a tensor that is trained and has no gradient stays as it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from peftcli.distributed.processes import World
from peftcli.errors import Problem, UserError
from peftcli.shown_text import some_of

SHOWN = 4
"""Modules that the note names."""


def dropped_blocks_note(config: Any) -> str | None:
    """Return a note on a model that drops whole blocks in training at random, or None of one that does not.

    Args:
        config: of the model.
    """
    rates = {name: rate for name, rate in config.to_dict().items() if name.endswith("layerdrop") and rate}
    if not rates:
        return None
    told = ", ".join(f"{name} {rate:g}" for name, rate in rates.items())
    return (
        f"the model drops whole blocks in training ({told} in its config.json): what is trained in a dropped block has "
        "no gradient in that step"
    )


def unreached_note(parameters: Mapping[str, nn.Parameter], world: World) -> str | None:
    """Return a note on the trained tensors without a gradient, or None where all have one.

    Args:
        parameters: all that training moves, by name, after the backward passes of the first step and before gradients
            are summed over the processes; every process must call this.

    Raises:
        UserError: none of them has a gradient: the run would train nothing.
    """
    without = [name for name, parameter in parameters.items() if parameter.grad is None]
    if not world.any(len(without) < len(parameters)):
        raise UserError(
            Problem(
                f"no trained tensor has a gradient after the first backward pass, {without[0]} and {len(without) - 1} "
                "others: the loss does not depend on what is trained",
                key="method",
                suggestion="choose other targets: modules that the model's forward pass uses for this task",
            )
        )
    if not without or len(without) == len(parameters):  # the other processes had rows, this one had none
        return None
    modules = list(dict.fromkeys(name.rpartition(".")[0] or name for name in without))
    return (
        f"{len(without)} of {len(parameters)} trained tensors have no gradient after the first step's backward pass, "
        f"which does not reach them: {some_of(modules, SHOWN)}"
    )
