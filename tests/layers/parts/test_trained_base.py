"""A weight that is trained whole (`modules_to_save`) gets its gradient through the parts that multiply it, too."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from peftcli.layers.base_linear import BaseLinear
from peftcli.layers.base_table import BaseTable
from peftcli.layers.parts.dora import DoraDelta
from peftcli.layers.site import Part, output_site
from peftcli.layers.weight_changes.block_sums import BlockAffine
from peftcli.layers.weight_changes.hadamard import EmbeddingHadamardDelta, HadamardDelta
from peftcli.layers.weight_changes.rotation import SliceRotation
from peftcli.models.anatomy import FusedSlice

PARTS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], Part]]] = {
    "dora with dropout": (lambda: nn.Linear(6, 12), lambda host: DoraDelta(BaseLinear(host), 2, 1.5, dropout=0.3)),
    "dora with dropout, a slice": (
        lambda: Conv1D(12, 6),
        lambda host: DoraDelta(BaseLinear(host, FusedSlice(2, 6, 2, 2)), 2, 1.5, dropout=0.3),
    ),
    "hira": (lambda: nn.Linear(6, 12), lambda host: HadamardDelta(BaseLinear(host), 2)),
    "hira of a table": (
        lambda: nn.Embedding(9, 6, padding_idx=0),
        lambda host: EmbeddingHadamardDelta(BaseTable(host), 2),
    ),
    "bat": (lambda: nn.Linear(6, 12), lambda host: BlockAffine(BaseLinear(host), 3)),
    "oft of a slice": (
        lambda: Conv1D(12, 6),
        lambda host: SliceRotation(BaseLinear(host, FusedSlice(1, 12, 4, 4)), 3),
    ),
}


@pytest.mark.parametrize("name", PARTS)
def test_a_trained_weight_has_the_gradient_of_the_whole_output(name: str) -> None:
    torch.manual_seed(3)
    make, part_of = PARTS[name]
    host = make()
    part = part_of(host)
    for parameter in part.parameters():
        nn.init.normal_(parameter)
    if isinstance(part, DoraDelta):
        norm = torch.rand(part.base.out_features) + 0.5
        part.norm = lambda *_: norm  # DoRA takes it as a constant
    output_site(host).parts.append(part)
    x = torch.randint(1, 9, (4,)) if isinstance(host, nn.Embedding) else torch.randn(4, 6)
    weight, towards = host.weight, torch.randn_like(host(x))

    def value() -> torch.Tensor:
        torch.manual_seed(5)  # the same dropout
        return (host(x) * towards).sum()

    (gradient,) = torch.autograd.grad(value(), weight)
    step = torch.randn_like(weight)
    with torch.no_grad():  # the output is linear in the weight
        before = value()
        weight += step
        risen = value() - before
    torch.testing.assert_close((gradient * step).sum(), risen, atol=1e-3, rtol=1e-4)
