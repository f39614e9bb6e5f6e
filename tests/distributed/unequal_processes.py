"""One of two processes that would start apart: `python -m tests.distributed.unequal_processes OUT RECIPE ...`.

The second one adds noise to all that a method added or trains, as another kind of GPU would give other numbers, and its
probe finds bfloat16 faster. Each writes, beside OUT, what it trained with and how far apart the processes end.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from peftcli.assembly import precision
from peftcli.assembly.attach_method import Attached, attach_method
from peftcli.distributed.processes import World
from peftcli.layers.added_modules import is_added
from peftcli.names import NAMES
from peftcli.recipe.load_recipe import load_recipe
from peftcli.training import setup
from peftcli.training.run import train


def main(out: str, *recipes: str) -> None:
    """Train each recipe and write what was found."""
    world = World(torch.device("cpu"))
    models: list[torch.nn.Module] = []

    def attach(*arguments: Any) -> Attached:
        attached = attach_method(*arguments)
        for tensor in _kept(attached.attachment.model).values():
            if world.rank == 1 and tensor.is_floating_point():
                tensor.data.add_(torch.rand_like(tensor) + 0.1)
        models.append(attached.attachment.model)
        return attached

    setup.attach_method = attach
    precision.probe_bfloat16 = lambda _device, _width: (world.rank == 1, 3.0)
    found = {}
    for recipe in recipes:
        loaded = load_recipe(recipe, [], NAMES)
        summary = train(loaded)
        digests = {name: tensor.double().sum().item() for name, tensor in _kept(models[-1]).items()}
        every = world.gather(digests)
        apart = [name for name in digests if len({one[name] for one in every}) > 1]
        found[Path(recipe).stem] = {"apart": apart, "tensors": len(digests), "precision": summary.precision}
    Path(f"{out}.{world.rank}").write_text(json.dumps(found), encoding="utf-8")


def _kept(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return what a method added, and what is trained."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor for name, tensor in named if is_added(name) or tensor.requires_grad}


if __name__ == "__main__":
    main(*sys.argv[1:])
