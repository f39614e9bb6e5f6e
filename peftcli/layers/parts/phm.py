"""Parameterised hypercomplex multiplication with low-rank factors (Compacter, Karimi Mahabadi et al. 2021, 2106.04647).

W = sum_i A_i (x) (s_i t_i), A_i of n x n shared by every layer, s_i of (k/n x r) and t_i of (r x d/n) each layer's
own, and y = x W + b. The full matrix is never built: (A (x) B) acts on x seen as an n by k/n matrix X as A^T X B.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from peftcli.layers.parts.bottleneck import Projection


def phm_linear(x: Tensor, rule: Tensor, s: Tensor, t: Tensor, bias: Tensor) -> Tensor:
    """Return x W + b in x's dtype, W = sum_i rule_i (x) (s_i t_i).

    Costs k r n + n^3 r + r n d products for each row of x, against k d for the full matrix.

    Args:
        x: (..., k).
        rule: (n, n, n), the matrices A_i.
        s: (n, k/n, r).
        t: (n, r, d/n).
        bias: (d,).
    """
    dtype = x.dtype
    n, part, rank = s.shape
    left = s.to(dtype).permute(1, 0, 2).reshape(part, n * rank)  # every s_i side by side
    inner = (x.reshape(*x.shape[:-1], n, part) @ left).view(*x.shape[:-1], n, n, rank)  # (..., a, i, r)
    mixed = torch.einsum("...air,iab->...bir", inner, rule.to(dtype))
    out = mixed.flatten(-2) @ t.to(dtype).flatten(0, 1)  # (..., b, d/n)
    return out.flatten(-2) + bias.to(dtype)


class PhmRule(nn.Module):
    """The matrices A_i that every layer shares, (n, n, n) in float32.

    Args:
        n: phm_dim.
    """

    def __init__(self, n: int) -> None:
        super().__init__()
        self.rule = nn.Parameter(torch.empty(n, n, n, dtype=torch.float32))
        nn.init.normal_(self.rule, std=1e-4)  # the official configs' phm_init_range (the code's default is 1e-2)


class PhmLinear(Projection):
    """One projection of a Compacter adapter: its own s, t and bias, and the shared rule.

    Args:
        rule: registered once, below the model; held here without being registered again.
        width_in: k, a multiple of n.
        width_out: d, a multiple of n.
        rank: r.
    """

    def __init__(self, rule: PhmRule, width_in: int, width_out: int, rank: int) -> None:
        super().__init__()
        n = rule.rule.shape[0]
        self.width_out = width_out
        self._rule = (rule,)
        self.s = nn.Parameter(torch.empty(n, width_in // n, rank, dtype=torch.float32))
        self.t = nn.Parameter(torch.empty(n, rank, width_out // n, dtype=torch.float32))
        self.bias = nn.Parameter(torch.zeros(width_out, dtype=torch.float32))
        with torch.no_grad():  # a piece is a view of its factor
            for factor in (self.s, self.t):
                for piece in factor:
                    nn.init.xavier_uniform_(piece, gain=math.sqrt(2))

    def forward(self, x: Tensor) -> Tensor:
        """Return x W + b for x: (..., width_in)."""
        return phm_linear(x, self._rule[0].rule, self.s, self.t, self.bias)
