"""What a low-rank pair starts from: random values, zeros, or the base's principal components.

An initialiser is drawn on the CPU in float32 from torch's global random state.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Initialiser = Callable[[Tensor, Tensor], None]
"""Fills a: (r, d_in) and b: (d_out, r) in place, drawing from torch's CPU state."""


@torch.no_grad()
def fill_(a: Tensor, b: Tensor, init: Initialiser) -> None:
    """Fill a pair by `init`, drawn on the CPU so that a seed means the same on every device; nothing on meta."""
    if a.device.type == "meta":
        return
    drawn_a, drawn_b = torch.empty(a.shape), torch.empty(b.shape)
    init(drawn_a, drawn_b)
    a.copy_(drawn_a)
    b.copy_(drawn_b)


def kaiming_init(a: Tensor, b: Tensor) -> None:
    """A as nn.Linear's default, U(-1/sqrt(d_in), 1/sqrt(d_in)); B zero: loralib and HF peft. The paper: A Gaussian."""
    nn.init.kaiming_uniform_(a, a=math.sqrt(5))
    nn.init.zeros_(b)


def random_init(a: Tensor, b: Tensor) -> None:
    """Both as nn.Linear's default: no identity at the start; for tests (HF peft's `init_lora_weights: false`)."""
    nn.init.kaiming_uniform_(a, a=math.sqrt(5))
    nn.init.kaiming_uniform_(b, a=math.sqrt(5))


def gaussian_init(a: Tensor, b: Tensor) -> None:
    """A N(0, 1/r^2), B zero."""
    nn.init.normal_(a, std=1.0 / a.shape[0])
    nn.init.zeros_(b)


def orthogonal_init(a: Tensor, b: Tensor) -> None:
    """A from the odd and B from the even rows of one orthogonal matrix: B A is zero, neither factor is.

    The rank is even. Source: HF peft's `orthogonal`, after datta0.github.io/posts/rethink-lora-init.
    """
    rank = a.shape[0]
    orthogonal, _ = torch.linalg.qr(torch.randn(rank, rank))
    # 1/10: the size at which the factors' first steps match those of the default initialisation
    a.copy_((torch.randn(a.shape[1], rank // 2) @ orthogonal[0::2]).T / 10.0)
    b.copy_(torch.randn(rank // 2, b.shape[0]).T @ orthogonal[1::2] / 10.0)


def embedding_init(a: Tensor, b: Tensor) -> None:
    """A zero, B N(0, 1): loralib and HF peft, after nn.Embedding's default."""
    nn.init.zeros_(a)
    nn.init.normal_(b)


def embedding_random_init(a: Tensor, b: Tensor) -> None:
    """Both N(0, 1): no identity at the start."""
    nn.init.normal_(a)
    nn.init.normal_(b)


Decomposition = Callable[[Tensor, int, float], tuple[Tensor, Tensor]]
"""From a weight (d_out, d_in) in float32, r and s to the pair a: (r, d_in) and b: (d_out, r) that training starts with;
s b a is what the rest of the weight is left of."""


@dataclass(frozen=True)
class PrincipalPair:
    """The pair whose product, times the scale, is the best approximation of a weight of this rank (PiSSA).

    Args:
        iterations: of the randomised decomposition; None for the exact one.
    """

    iterations: int | None = None

    @torch.no_grad()
    def __call__(self, weight: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor]:
        """Return a and b; see `Decomposition`."""
        if self.iterations is None:
            left, values, right = torch.linalg.svd(weight, full_matrices=False)
            left, values, right = left[:, :rank], values[:rank], right[:rank]
        else:
            left, values, columns = torch.svd_lowrank(weight, q=rank, niter=self.iterations)
            right = columns.T
        root = (values / scale).sqrt()
        return root.unsqueeze(1) * right, left * root


@torch.no_grad()
def orthonormal_pair(weight: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor]:  # noqa: ARG001  # see below
    """Return the first r columns of Q and rows of R of a weight's QR decomposition (OLoRA); see `Decomposition`.

    The scale is left out, as in HF peft: s Q_r R_r is subtracted, whatever s is.
    """
    left, right = torch.linalg.qr(weight)
    return right[:rank].contiguous(), left[:, :rank].contiguous()
