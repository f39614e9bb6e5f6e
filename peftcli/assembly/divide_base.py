"""Which tensors of a model are divided among the processes of a run, and which stay whole in each of them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain

from torch import nn

from peftcli.distributed.processes import World
from peftcli.distributed.sharding import drop_gathered, is_sharded, shard_model
from peftcli.distributed.whole_tensors import held_bytes, is_share
from peftcli.layers.added_modules import is_added
from peftcli.models.anatomy import Anatomy
from peftcli.protocol.attachment import Attachment
from peftcli.protocol.method import MethodInfo


def divide_base(anatomy: Anatomy, attachment: Attachment, info: MethodInfo, world: World) -> None:
    """Divide the base among the processes, block by block, where the strategy of the run says so.

    What a method added stays whole, and so does what is trained beside a frozen base (head, `modules_to_save`,
    biases); a method that trains the base itself trains its shares.

    Args:
        anatomy: names the blocks.
        attachment: filled; its model is whole and ready to train.
    """
    model = attachment.model
    if is_sharded(model):  # it was read in shares
        drop_gathered(model)  # what was tried on it since left parameters whole, which are others than the shares
        return
    if not world.strategy.sharded:
        return
    whole = {p for name, p in model.named_parameters(remove_duplicate=False) if is_added(name)}
    if info.artifact == "adapter":
        whole |= set(attachment.trainable_parameters().values())
    shard_model(model, [path for paths in anatomy.layers.values() for path in paths], whole, world)


GATHERED = 2
"""Blocks that are whole at a time in a pass: the one that is computed, and the next one, which is fetched meanwhile."""


def freed_by_dividing(anatomy: Anatomy, model: nn.Module, world: World) -> int:
    """Return the bytes of this process's device that `divide_base` will give back, but for blocks that a pass gathers.

    Nothing where the base is held in shares already, or stays whole.
    """
    strategy = world.strategy
    if not strategy.sharded or not strategy.reshard_after_forward or is_sharded(model):
        return 0
    own = [
        [parameter for name, parameter in model.get_submodule(path).named_parameters() if not is_added(name)]
        for paths in anatomy.layers.values()
        for path in paths
    ]
    stays = 0.0 if strategy.cpu_offload else 1 / world.size
    gathered = GATHERED * max(map(held_bytes, own), default=0)
    return int(max(0, held_bytes(chain.from_iterable(own)) - gathered) * (1 - stays))


def bytes_when_divided(parameters: Mapping[str, nn.Parameter], info: MethodInfo, world: World) -> int:
    """Return the bytes of trained parameters that this process holds while it trains: of a divided base its share.

    Args:
        parameters: by name; the base may be divided by now or not.
    """
    total = 0
    for name, parameter in parameters.items():
        divided = world.strategy.sharded and info.artifact == "model" and not is_added(name)
        total += parameter.nbytes // (world.size if divided or is_share(parameter) else 1)
    return total


def base_parameters_of(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of the base, as they are held here; what a method added is left out."""
    return [parameter for name, parameter in model.named_parameters() if not is_added(name)]
