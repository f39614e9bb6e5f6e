"""Parts on a base that FSDP2 has sharded compute what they compute on a whole one, to the bit.

A process group of one process: the weights are DTensors all the same, gathered for a pass and dropped behind it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard

from peftcli.layers.added_modules import is_added
from peftcli.training.speed.compute_weights import frozen_projections
from tests.methods import harness


@pytest.fixture
def one_process() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def shard_base(model: Any) -> None:
    """Shard every block and the rest of the model; what a method added stays whole."""
    whole = {parameter for name, parameter in model.named_parameters() if is_added(name)}
    for module in (*model.model.layers, model):
        fully_shard(module, ignored_params=whole)
    for module in model.modules():
        if isinstance(module, FSDPModule):  # gloo knows no division while it reduces
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def trained(method: str, params: dict[str, Any], *, sharded: bool) -> tuple[list[float], dict[str, Tensor]]:
    """Return the losses of two steps, and the adapter after them."""
    attachment = harness.attached(method, "llama", **params)
    attachment.initialise(attachment.model)
    harness.disturb(attachment, 0.05)
    if sharded:
        shard_base(attachment.model)
    optimizer = torch.optim.SGD(attachment.trainable_parameters().values(), lr=0.1)
    attachment.model.train()
    losses = []
    for step in range(2):
        torch.manual_seed(step)  # dropout's
        loss = harness.loss_of(attachment, harness.batch_for(attachment.model))
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    return losses, {key: tensor.clone() for key, tensor in attachment.state_dict().items()}


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("lora", {"target_modules": "all-linear"}),  # writes into the projection's output
        ("lora", {"lora_dropout": 0.3}),
        ("lora", {"use_dora": True}),  # reads the base's weight in every pass
        ("ia3", {}),
        ("oft", {"oft_block_size": 8, "module_dropout": 0.3}),
        ("hira", {"r": 4}),  # keeps the base's weight until the backward pass
        ("miss", {"r": 8, "init_weights": "bat"}),
        ("shira", {"r": 4}),
        ("adapter", {"train_layer_norm": False}),
    ],
)
def test_the_numbers_are_those_of_a_whole_base(method: str, params: dict[str, Any], one_process: None) -> None:
    losses, adapter = trained(method, params, sharded=False)
    sharded_losses, sharded_adapter = trained(method, params, sharded=True)
    assert sharded_losses == losses
    assert all(torch.equal(sharded_adapter[key], tensor) for key, tensor in adapter.items())


def test_copies_for_computing_leave_sharded_weights_alone(one_process: None) -> None:
    model: nn.Module = harness.frozen("llama")[0]
    assert frozen_projections(model)
    shard_base(model)
    assert frozen_projections(model) == []
