"""VeRA's layer: two frozen random matrices shared by all places, and two trained vectors at each."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftcli.layers.base_linear import Slice
from peftcli.layers.dropout import dropout
from peftcli.layers.site import Part


def random_projections(r: int, d_in: int, d_out: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return VeRA's frozen A: (r, d_in) and B: (d_out, r), in float32 on the CPU.

    Kaiming-uniform with gain sqrt(2), A drawn before B from one generator: HF peft draws the same numbers from the
    same seed.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    a = _kaiming_uniform((r, d_in), generator)
    return a, _kaiming_uniform((d_out, r), generator)


def _kaiming_uniform(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    bound = math.sqrt(3.0) * math.sqrt(2.0 / shape[1])  # fan_in is the second dimension
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


class SharedProjections(nn.Module):
    """A and B, held once: every part has this module as a child; the buffers are neither counted nor saved.

    Args:
        r, d_in, d_out: rank, and the largest input and output among the places.
        seed: of the generator.
        device: meta while counting, where no numbers are drawn.
    """

    A: Tensor
    B: Tensor

    def __init__(self, r: int, d_in: int, d_out: int, seed: int, device: torch.device) -> None:
        super().__init__()
        if device.type == "meta":
            a, b = torch.empty(r, d_in, device=device), torch.empty(d_out, r, device=device)
        else:
            a, b = (matrix.to(device) for matrix in random_projections(r, d_in, d_out, seed))
        self.register_buffer("A", a, persistent=False)
        self.register_buffer("B", b, persistent=False)


class VeraDelta(Part):
    """y + lambda_b * B (lambda_d * A dropout(x)).

    Args:
        projections: the shared A and B; this place uses A[:, :d_in] and B[:d_out].
        d_in, d_out: features of this place (a slice's own).
        d_initial: start of lambda_d; lambda_b starts at zero, so that a fresh adapter is the identity.
        dropout: on x.
        slice: which output features of a fused host.
        device: of the vectors.
    """

    def __init__(
        self,
        projections: SharedProjections,
        d_in: int,
        d_out: int,
        *,
        d_initial: float,
        dropout: float,
        slice: Slice | None,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.projections = projections
        self.d_in, self.d_out, self.slice = d_in, d_out, slice
        self.dropout = dropout
        r = projections.A.shape[0]
        self.vera_lambda_b = nn.Parameter(torch.zeros(d_out, device=device, dtype=torch.float32))
        self.vera_lambda_d = nn.Parameter(torch.full((r,), d_initial, device=device, dtype=torch.float32))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = dropout(x.to(y.dtype), self.dropout, self.training)
        a = self.projections.A[:, : self.d_in].to(y.dtype)
        b = self.projections.B[: self.d_out].to(y.dtype)
        hidden = F.linear(x, a) * self.vera_lambda_d.to(y.dtype)
        delta = F.linear(hidden, b) * self.vera_lambda_b.to(y.dtype) * self.scale_of(x)
        return y + delta if self.slice is None else self.slice.add(y, delta)

    def multiplicative(self) -> list[nn.Parameter]:
        """Return both vectors."""
        return [self.vera_lambda_b, self.vera_lambda_d, *super().multiplicative()]
