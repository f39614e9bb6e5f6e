"""Bottleneck adapters: project down, apply a non-linearity, project up. Serial after a branch, or parallel to it.

Houlsby et al. 2019 (1902.00751), Pfeiffer et al. 2020 (2005.00247), He et al. 2021 (2110.04366).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from peftcli.layers.dropout import dropout as drop
from peftcli.layers.site import Part

NonLinearity = Literal["relu", "gelu", "gelu_new", "silu", "tanh"]
Initialiser = Literal["houlsby", "pfeiffer", "lora"]

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "gelu_new": lambda x: functional.gelu(x, approximate="tanh"),  # the tanh form of the original BERT and T5 code
    "silu": functional.silu,
    "tanh": torch.tanh,
}


def activation(name: NonLinearity) -> Callable[[Tensor], Tensor]:
    """Return a non-linearity by name."""
    return _ACTIVATIONS[name]


class Projection(nn.Module):
    """One of an adapter's two projections; `width_out` is the width of its output."""

    width_out: int

    def forward(self, x: Tensor) -> Tensor:
        """Return the projection of x: (..., in), as (..., width_out)."""
        raise TypeError(f"{type(self).__name__} does not define forward(x)")


class MasterLinear(Projection):
    """A linear layer whose float32 parameters are cast to the input's dtype: the base may compute in bfloat16.

    Args:
        width_in, width_out: of its input and output; the weight is (width_out, width_in).
    """

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.width_out = width_out
        self.weight = nn.Parameter(torch.empty(width_out, width_in, dtype=torch.float32))
        self.bias = nn.Parameter(torch.zeros(width_out, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        """Return x W^T + b in x's dtype; x: (..., width_in)."""
        return functional.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))


def linear_pair(width: int, size: int, init: Initialiser) -> tuple[MasterLinear, MasterLinear]:
    """Return the down (m, d) and up (d, m) projections of an adapter in float32: 2md + d + m numbers.

    Args:
        width: d, of the hidden states.
        size: m, the bottleneck.
        init: `houlsby` truncated normal of standard deviation 1e-3 (google-research/adapter-bert), `pfeiffer`
            N(0, 0.02) (AdapterHub), `lora` Kaiming-uniform down and zero up (He et al.'s code). Biases are zero.
    """
    down, up = MasterLinear(width, size), MasterLinear(size, width)
    if init == "houlsby":
        for layer in (down, up):
            nn.init.trunc_normal_(layer.weight, std=1e-3, a=-2e-3, b=2e-3)  # cut at two deviations, as TensorFlow does
    elif init == "pfeiffer":
        for layer in (down, up):
            nn.init.normal_(layer.weight, std=0.02)
    else:
        nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))
        nn.init.zeros_(up.weight)
    return down, up


class _Adapter(Part):
    """The bottleneck of both kinds: up(dropout(act(down(x)))).

    Args:
        pair: the two projections, (d) to (m) and back: linear or hypercomplex.
        act: the non-linearity.
        dropout: on the bottleneck's activations.
        scale: a factor on the change; compositions put a gate here.
    """

    def __init__(
        self, pair: tuple[Projection, Projection], act: NonLinearity, dropout: float = 0.0, scale: float = 1.0
    ) -> None:
        super().__init__(scale)
        self.down, self.up = pair
        self.act = activation(act)
        self.dropout = dropout

    def gate_width(self) -> int | None:
        """Return the width of the hidden states."""
        return self.up.width_out

    def fill_gate(self, weight: Tensor) -> None:
        """Draw from N(0, 0.02), as UniPELT's adapters do."""
        nn.init.normal_(weight, std=0.02)

    def change(self, x: Tensor) -> Tensor:
        """Return the adapter's unscaled change for x: (..., d)."""
        hidden = self.act(self.down(x))
        out: Tensor = self.up(drop(hidden, self.dropout, self.training))
        return out


class SerialAdapter(_Adapter):
    """An adapter on what its site holds: y + scale * change(f(y)), with f the identity or a norm of the base.

    Args:
        norm: applied to the adapter's input only (Pfeiffer: the norm that follows the residual sum). It is called
            without its hooks, because one of them runs this part; it stays the base's own.
    """

    stage = 1

    def __init__(
        self,
        pair: tuple[Projection, Projection],
        act: NonLinearity,
        dropout: float = 0.0,
        norm: nn.Module | None = None,
    ) -> None:
        super().__init__(pair, act, dropout)
        self._norm = (norm,)  # in a tuple, so that the base's norm is not registered as ours

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the adapted value of y: (..., d); a gate sees what the adapter sees."""
        norm = self._norm[0]
        seen: Tensor = y if norm is None else norm.forward(y)
        return y + self.scale_of(seen) * self.change(seen)


class ParallelAdapter(_Adapter):
    """An adapter beside a branch: y + scale * change(x), with x the branch's input and y its output."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return y plus the scaled change of x; both (..., d)."""
        return y + self.scale_of(x) * self.change(x)
