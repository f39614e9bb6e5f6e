"""A base divided among processes by FSDP2 (torch's `fully_shard`), block by block; the same on CPUs (gloo) and GPUs.

Each process holds a share of every tensor of a block. All of them gather a block right before its forward or backward
pass, and drop the other shares after it. What is trained beside the base stays whole in each process: it is small, it
keeps its own dtype, and adapters, allocators and merges see ordinary tensors. Its gradients are summed by
`World.sum_gradients`; those of a base that is trained itself are summed by FSDP2 as they are made.

Gathering takes all processes together, so that each must run the model equally often: see `equal_passes`.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from peftcli.distributed.processes import World

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule


def shard_model(model: nn.Module, blocks: Iterable[str], whole: Collection[nn.Parameter], world: World) -> None:
    """Divide a model's parameters among the processes; buffers stay whole.

    It comes after everything that looks at whole weights or tries the model out, and before the optimizer is made: a
    parameter that is divided is another object.

    Args:
        model: whole and equal in every process; changed in place.
        blocks: paths of the modules that are gathered one after the other. What is outside of them (embeddings, last
            norm, head) is gathered for a whole pass, since the loss reads the head's weight after the forward pass.
        whole: parameters that stay as they are.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard

    modules = list({id(module): module for module in map(model.get_submodule, blocks)}.values())
    kept = {*whole, *_of_several(modules)}
    strategy = world.strategy
    options: dict[str, Any] = {"mesh": init_device_mesh(world.device.type, (world.size,)), "ignored_params": kept}
    if strategy.cpu_offload:
        options["offload_policy"] = CPUOffloadPolicy()
    for block in modules:
        fully_shard(block, reshard_after_forward=strategy.reshard_after_forward, **options)
    fully_shard(model, reshard_after_forward=False, **options)
    for module in _sharded_modules(model):
        # gloo cannot divide while it reduces, and the loss is divided already, by the count of the whole step
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)


def drop_gathered(model: nn.Module) -> None:
    """Let go of the other processes' shares; after an evaluation, which no backward pass follows that would do it."""
    for module in _sharded_modules(model):
        module.reshard()


def is_sharded(model: nn.Module) -> bool:
    """Return whether a model is divided among processes."""
    return any(True for _ in _sharded_modules(model))


def _sharded_modules(model: nn.Module) -> Iterable[FSDPModule]:
    if "torch.distributed.fsdp" not in sys.modules:  # nothing was sharded, and the import takes time
        return
    from torch.distributed.fsdp import FSDPModule

    yield from (module for module in model.modules() if isinstance(module, FSDPModule))


def _of_several(modules: Sequence[nn.Module]) -> set[nn.Parameter]:
    """Return the parameters that several of the modules share: they stay whole, as no block owns them."""
    uses = Counter(parameter for module in modules for parameter in module.parameters())
    return {parameter for parameter, count in uses.items() if count > 1}
