"""Which tensors of a model are divided among the processes of a run, and which stay whole in each of them."""

from __future__ import annotations

from torch import nn

from peftcli.distributed.processes import World
from peftcli.distributed.sharding import drop_gathered, is_sharded, shard_model
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


def base_parameters_of(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of the base, as they are held here; what a method added is left out."""
    return [parameter for name, parameter in model.named_parameters() if not is_added(name)]
