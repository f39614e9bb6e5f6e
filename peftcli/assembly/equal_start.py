"""Processes of a run start from the same values, whatever each of them drew or computed on a device of its own."""

from __future__ import annotations

from itertools import chain

from torch import nn
from torch.distributed.tensor import DTensor

from peftcli.distributed.processes import World
from peftcli.layers.added_modules import is_added


def start_equal(model: nn.Module, world: World) -> None:
    """Give every process the main one's values of what is trained and of what the method added, buffers too.

    Devices of different kinds draw different numbers from one seed, and compute a singular value decomposition (PiSSA)
    with other signs. The base is read from the same files.

    Args:
        model: after the method was attached and initialised; what is divided among the processes is left out.
    """
    if world.size == 1:
        return
    named = chain(model.named_parameters(), model.named_buffers())
    world.make_equal(
        [
            tensor
            for name, tensor in named
            if (is_added(name) or tensor.requires_grad) and not isinstance(tensor, DTensor)
        ]
    )
