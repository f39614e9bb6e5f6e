"""AdaLoRA's layer: a weight change in the form of a singular value decomposition, P diag(E) Q."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from peftcli.layers.base_linear import Slice
from peftcli.layers.parts.lora_init import fill_
from peftcli.layers.parts.lowrank import lowrank_add
from peftcli.layers.site import Part

TRIPLET = ("lora_A", "lora_E", "lora_B")
"""The names of a part's three trained tensors, and of the saved ones: Q, diag(E) and P."""

_RANK_EPSILON = 1e-5  # the official code divides by r_init + 1e-5


def svd_scale(alpha: float, init_r: int) -> float:
    """Return alpha / (r_init + 1e-5); alpha <= 0 means no scaling. Pruning never changes it."""
    return (alpha if alpha > 0 else float(init_r)) / (init_r + _RANK_EPSILON)


def svd_init(a: Tensor, b: Tensor) -> None:
    """A and B N(0, 0.02), as in the official code; E is zero, so that a fresh adapter is the identity."""
    nn.init.normal_(a, std=0.02)
    nn.init.normal_(b, std=0.02)


def orthogonality(matrix: Tensor) -> Tensor:
    """Return the Frobenius norm of M M^T - I for M: (r, d); not squared, as in the official code."""
    gram = matrix @ matrix.T
    norm: Tensor = torch.linalg.norm(gram - torch.eye(len(gram), device=gram.device, dtype=gram.dtype))
    return norm


def orthogonalities(matrices: Sequence[Tensor]) -> Tensor:
    """Return `orthogonality` of each matrix, (matrices,), in the order of their ranks.

    Away from the CPU those of one rank are computed at once: a few kernels a step instead of thousands. Their Gram
    matrices have one shape, whatever the widths.
    """
    if matrices[0].device.type == "cpu":
        return torch.stack([orthogonality(matrix) for matrix in sorted(matrices, key=len)])
    grams: dict[int, list[Tensor]] = {}
    for matrix in matrices:
        grams.setdefault(len(matrix), []).append(matrix @ matrix.T)
    norms = []
    for rank in sorted(grams):
        one = torch.eye(rank, device=matrices[0].device, dtype=matrices[0].dtype)
        norms.append(torch.linalg.matrix_norm(torch.stack(grams[rank]) - one))
    return torch.cat(norms)


class SvdDelta(Part):
    """y + scale * dropout(x) (A * E)^T B^T.

    Args:
        init_r: number of triplets.
        d_in, d_out: features of this place (a slice's own).
        alpha: numerator of the scale.
        dropout: on x.
        slice: which output features of a fused host.
        device: of the parameters; meta while counting.
    """

    def __init__(
        self,
        init_r: int,
        d_in: int,
        d_out: int,
        *,
        alpha: float,
        dropout: float,
        slice: Slice | None,
        device: torch.device,
    ) -> None:
        super().__init__(svd_scale(alpha, init_r))
        self.slice = slice
        self.dropout = dropout
        self.lora_A = nn.Parameter(torch.empty(init_r, d_in, device=device, dtype=torch.float32))
        self.lora_E = nn.Parameter(torch.zeros(init_r, 1, device=device, dtype=torch.float32))
        self.lora_B = nn.Parameter(torch.empty(d_out, init_r, device=device, dtype=torch.float32))
        fill_(self.lora_A, self.lora_B, svd_init)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        return lowrank_add(y, x, self.lora_A * self.lora_E, self.lora_B, self.scale_of(x), self.slice, dropout)

    def triplet(self) -> list[tuple[str, nn.Parameter]]:
        """Return the three trained tensors by name; a gate in the part's scale is not among them."""
        return [(name, self.get_parameter(name)) for name in TRIPLET]

    def multiplicative(self) -> list[nn.Parameter]:
        """Return the singular values; which of them become zero is for the allocator to say."""
        return [self.lora_E, *super().multiplicative()]

    def allotted_rank(self) -> int:
        """Return how many triplets there were before any was pruned."""
        return self.lora_E.numel()

    def low_rank(self) -> tuple[Tensor, Tensor]:
        """Return P and diag(E) Q of the ranks that are kept, those whose singular value is not zero."""
        kept = self.lora_E.detach().flatten().nonzero().flatten()
        return self.lora_B[:, kept], (self.lora_A * self.lora_E)[kept]
