"""A site passes a module's output through its parts, whatever the output is packed in."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peftcli.layers.site import Part, output_site

Packed = namedtuple("Packed", ["hidden_states", "buckets"])


class Doubled(Part):
    """Twice what was there."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return 2 * y


@pytest.mark.parametrize("kind", [tuple, list, Packed, None])
def test_the_output_stays_what_it_was_packed_in(kind: Any) -> None:
    class Block(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return x if kind is None else Packed(x, "rest") if kind is Packed else kind((x, "rest"))

    block = Block()
    output_site(block).parts.append(Doubled())
    found = block(torch.ones(1, 2))
    assert type(found) is (kind or Tensor)
    first = found if kind is None else found[0]
    assert torch.equal(first, torch.full((1, 2), 2.0))
    if kind is Packed:
        assert torch.equal(found.hidden_states, first) and found.buckets == "rest"
