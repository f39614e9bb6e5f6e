"""Every fast path against the plain one: the same losses and gradients, however a step is computed; exact gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peftcli.layers.base_linear import BaseLinear
from peftcli.layers.parts.bottleneck import ParallelAdapter, SerialAdapter, linear_pair
from peftcli.layers.parts.rescale import Rescale
from peftcli.layers.parts.svd_lora import SvdDelta
from peftcli.layers.parts.vera import SharedProjections, VeraDelta
from peftcli.layers.weight_changes.block_sums import BlockAffine, BlockSums
from peftcli.layers.weight_changes.hadamard import HadamardDelta
from peftcli.layers.weight_changes.kronecker import KroneckerDelta
from peftcli.layers.weight_changes.rotation import Rotation
from peftcli.layers.weight_changes.sparse import SparseDelta, random_places
from peftcli.recipe.schema import FastPathsSpec, TrainingSpec
from peftcli.training.optim.optimizers import make_optimizer
from peftcli.training.run import train
from tests.recipes import Recorder, chat_rows

PLAIN = {
    "training__fast_paths": dict.fromkeys(FastPathsSpec.model_fields, False),
    "training__optim": "adamw_torch_plain",
}
LORA = {"name": "lora", "r": 4, "target_modules": "all-linear"}
WAYS: dict[str, dict[str, Any]] = {
    "whole": {},
    "accumulated": {"training__per_device_train_batch_size": 2, "training__gradient_accumulation_steps": 4},
    "micro-batches": {"training__max_tokens_per_micro_batch": 24},
    "autocast": {"training__bf16": True},
    "autocast, checkpointed": {"training__bf16": True, "training__gradient_checkpointing": True},
    "4 bits": {"model__load_in_4bit": True, "method": {**LORA, "name": "qlora"}},
    "upper blocks": {"method": {**LORA, "layers_to_transform": [1]}},
    "fused projections": {"family": "gpt2"},
    "adalora": {"method": {"name": "adalora", "init_r": 4, "target_r": 2}},
    "adapter": {"method": {"name": "adapter"}},
    "compacter": {"method": {"name": "compacter"}},
    "vera": {"method": {"name": "vera"}},
    "prefix": {"method": {"name": "prefix_tuning", "num_virtual_tokens": 4}},
    "dora": {"method": {**LORA, "use_dora": True}},
}


@pytest.mark.parametrize("way", WAYS)
def test_all_fast_paths_train_as_none(recipe, models, way: str) -> None:
    changes = {"method": LORA, "training__per_device_train_batch_size": 8, **WAYS[way]}
    family = changes.pop("family", "llama")
    if "4 bits" in way:
        pytest.importorskip("bitsandbytes")
    runs = []
    for name, switches in (("fast", {}), ("plain", PLAIN)):
        recorder = Recorder()
        options = {**changes, **switches, "name": name, "training__max_steps": 4}
        train(recipe(family, "causal_lm", chat_rows(24), **options), reporter=recorder)
        runs.append(recorder)
    exact = 1e-4 if "autocast" not in way and "4 bits" not in way else 2e-2
    assert runs[0].losses == pytest.approx(runs[1].losses, abs=exact)
    norms = [[record.grad_norm for record in run.steps] for run in runs]
    assert norms[0] == pytest.approx(norms[1], rel=20 * exact)


CPU = torch.device("cpu")
PARTS: dict[str, Callable[[], nn.Module]] = {
    "serial adapter": lambda: SerialAdapter(linear_pair(6, 3, "lora"), "tanh", dropout=0.5),
    "parallel adapter": lambda: ParallelAdapter(linear_pair(6, 3, "lora"), "tanh", dropout=0.5, scale=4.0),
    "singular values": lambda: SvdDelta(3, 6, 6, alpha=6.0, dropout=0.5, slice=None, device=CPU),
    "shared projections": lambda: VeraDelta(
        SharedProjections(3, 6, 6, 0, CPU), 6, 6, d_initial=0.1, dropout=0.5, slice=None, device=CPU
    ),
    "rotation": lambda: Rotation(6, 3, dropout=0.5),
    "shards": lambda: BlockSums(BaseLinear(nn.Linear(6, 6)), 4, dropout=0.5),
    "blocks": lambda: BlockAffine(BaseLinear(nn.Linear(6, 6)), 3),
    "element by element": lambda: HadamardDelta(BaseLinear(nn.Linear(6, 6)), 2, dropout=0.5),
    "Kronecker product": lambda: KroneckerDelta(
        BaseLinear(nn.Linear(6, 6)), 1, 2.0, decompose_both=True, rank_dropout=0.5, rank_dropout_scale=True
    ),
    "single entries": lambda: SparseDelta(BaseLinear(nn.Linear(6, 6)), random_places(6, 6, 9, 0)),
    "rescale": lambda: Rescale(6, "output", None, CPU),
}


@pytest.mark.parametrize("name", PARTS)
def test_gradients_of_a_part_are_exact(name: str) -> None:
    part = PARTS[name]().double().train()
    values = [torch.randn_like(parameter, requires_grad=True) for parameter in part.parameters()]
    names = [name for name, _ in part.named_parameters()]

    def call(x: Tensor, y: Tensor, *given: Tensor) -> Tensor:
        torch.manual_seed(0)  # the same mask in every call
        fresh = y * 1.0  # as a projection's output is: the part may write into it
        out: Tensor = torch.func.functional_call(part, dict(zip(names, given, strict=True)), (x, fresh))
        return out

    x, y = (torch.randn(2, 4, 6, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(call, (x, y, *values))


def test_fused_adamw_steps_as_the_plain_one() -> None:
    start = [torch.randn(5, 3), torch.randn(7)]
    gradients = [[torch.randn_like(tensor) for tensor in start] for _ in range(5)]
    ends = []
    for name in ("adamw_torch", "adamw_torch_plain"):
        parameters = [nn.Parameter(tensor.clone()) for tensor in start]
        spec = TrainingSpec(optim=name)
        optimizer = make_optimizer(spec, [{"params": parameters, "weight_decay": 0.1}], 1e-2, torch.device("cpu"))
        assert bool(optimizer.defaults["fused"]) == (name == "adamw_torch")
        for step in gradients:
            for parameter, gradient in zip(parameters, step, strict=True):
                parameter.grad = gradient.clone()
            optimizer.step()
        ends.append(parameters)
    for fused, plain in zip(*ends, strict=True):
        torch.testing.assert_close(fused, plain, atol=1e-6, rtol=1e-5)
