"""LoKr's layer: a Kronecker product of two small matrices, the second or both of low rank (Yeh et al. 2023)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from peftcli.layers.base_linear import BaseLinear
from peftcli.layers.dropout import dropout
from peftcli.layers.site import Part
from peftcli.layers.without_autocast import without_autocast

Start = Literal["default", "lycoris", "random"]


def factorisation(width: int, factor: int) -> tuple[int, int]:
    """Return a pair of divisors of `width`, the smaller first; LyCORIS's and HF peft's choice.

    Args:
        factor: the smaller one is this where it divides `width`, else the largest divisor up to it, and up to the
            root of `width`; -1 for the pair that is nearest to the root.
    """
    if factor > 0 and width % factor == 0:
        return factor, width // factor
    limit = width if factor == -1 else factor
    small = max(number for number in range(1, math.isqrt(width) + 1) if width % number == 0 and number <= limit)
    return small, width // small


def kronecker_factors(tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return both matrices of the product, (a, c) and (b, d), from saved tensors."""
    found = []
    for name in ("lokr_w1", "lokr_w2"):
        whole = tensors.get(name)
        found.append(tensors[f"{name}_a"] @ tensors[f"{name}_b"] if whole is None else whole)
    return found[0], found[1]


class KroneckerDelta(Part):
    """y + s (W1 (x) W2) x, computed without the product: x as a matrix (c, d) becomes W1 x W2^T, (a, b).

    Args:
        base: the frozen projection, or the rows of a fused one; a b = d_out, c d = d_in.
        rank: of W2 (and of W1 with `decompose_both`), where that is below half of its longer side.
        scale: s, alpha / r.
        factor: of both widths, see `factorisation`.
        decompose_both: whether W1 may have a low rank, too.
        rank_dropout: share of the output features that change nothing in a training step.
        rank_dropout_scale: make up for it in the others.
        module_dropout: how often the whole part does nothing in a training step.
        start: default (W1 zero), lycoris (W2 zero), or random, no identity; for tests.
    """

    def __init__(
        self,
        base: BaseLinear,
        rank: int,
        scale: float,
        *,
        factor: int = -1,
        decompose_both: bool = False,
        rank_dropout: float = 0.0,
        rank_dropout_scale: bool = False,
        module_dropout: float = 0.0,
        start: Start = "default",
    ) -> None:
        super().__init__(scale)
        self.rows = base.rows
        self.rank_dropout, self.rank_dropout_scale, self.module_dropout = (
            rank_dropout,
            rank_dropout_scale,
            module_dropout,
        )
        (c, d), (a, b) = factorisation(base.in_features, factor), factorisation(base.out_features, factor)
        self._add("lokr_w1", (a, c), rank, decompose_both and rank < max(a, c) / 2, base.device)
        self._add("lokr_w2", (b, d), rank, rank < max(b, d) / 2, base.device)
        if base.device.type != "meta":
            self._fill(start)

    def _add(self, name: str, shape: tuple[int, int], rank: int, low: bool, device: torch.device) -> None:
        rows, columns = shape
        shapes = {f"{name}_a": (rows, rank), f"{name}_b": (rank, columns)} if low else {name: shape}
        for own, size in shapes.items():
            self.register_parameter(own, nn.Parameter(torch.empty(size, device=device)))

    @torch.no_grad()
    def _fill(self, start: Start) -> None:
        """Draw all on the CPU; zero the matrix that makes a fresh part do nothing."""
        own = dict(self.named_parameters())
        for parameter in own.values():
            drawn = torch.empty(parameter.shape)
            nn.init.kaiming_uniform_(drawn, a=math.sqrt(5))
            parameter.copy_(drawn)
        if start == "default":
            own.get("lokr_w1", own.get("lokr_w1_a", torch.empty(0))).zero_()
        if start == "lycoris":
            own.get("lokr_w2", own.get("lokr_w2_b", torch.empty(0))).zero_()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        own = {name: parameter.to(y.dtype) for name, parameter in self.named_parameters()}
        with without_autocast(y.device.type):
            first, second = kronecker_factors(own)
            parts = x.to(y.dtype).reshape(*x.shape[:-1], first.shape[1], second.shape[1])
            added = (first @ (parts @ second.T)).flatten(-2) * self.scale_of(x)
            if self.training:
                added = self._dropped(added)
            return y + added if self.rows is None else self.rows.add(y, added)

    def _dropped(self, added: Tensor) -> Tensor:
        if self.module_dropout:  # a factor, and no other path: every process computes the same graph
            added = added * (dropout(added.new_ones(1, 1), self.module_dropout, shared=True) != 0)
        if not self.rank_dropout:
            return added
        kept = (dropout(added.new_ones(1, added.shape[-1]), self.rank_dropout, shared=True) != 0).to(added)
        if self.rank_dropout_scale:
            kept = kept / kept.mean().clamp(min=1.0 / kept.numel())  # none kept: nothing to make up for
        return added * kept
