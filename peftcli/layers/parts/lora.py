"""LoRA at one projection or embedding, with DoRA and PiSSA: the formulas, used alike by training, merging and tests.

LoRA  (Hu et al. 2021):          y = W x + b + s B A drop(x)
DoRA  (Liu et al. 2024):         y = m / |W + s B A| * (W + s B A) x + b, the norm per row, constant to autograd
PiSSA (Meng et al. 2024):        y = (W - s B0 A0) x + b + s B A x, where s B0 A0 is W's best approximation of rank r
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftcli.layers.base_linear import BaseLinear, Slice
from peftcli.layers.parts.lowrank import lowrank_add
from peftcli.layers.site import Part, Scale

Initialiser = Callable[[Tensor, Tensor], None]
"""Fills a: (r, d_in) and b: (d_out, r) in place, drawing from torch's CPU state."""


class Factor(nn.Module):
    """One factor of a low-rank pair, named `weight` so that files have the keys that other libraries read."""

    def __init__(self, rows: int, columns: int, device: torch.device | str | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, columns, dtype=torch.float32, device=device))

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, {self.weight.shape[1]}"


class LoraDelta(Part):
    """Adds s B A drop(x) to a projection's output; with an initial pair (PiSSA) s (B A drop(x) - B0 A0 x).

    The factors are float32 whatever the base's dtype: they are what the optimizer moves.

    Args:
        base: the frozen projection, or the rows of a fused one.
        rank: r.
        scale: s, or a gate that takes its place.
        dropout: of the low-rank branch's input.
        init: fills the factors; skipped on the meta device.
        keep_initial: hold a frozen pair that is subtracted (PiSSA); zero until `subtract_initial`.
    """

    def __init__(
        self,
        base: BaseLinear,
        rank: int,
        scale: Scale,
        *,
        dropout: float = 0.0,
        init: Initialiser | None = None,
        keep_initial: bool = False,
    ) -> None:
        super().__init__(scale)
        self.base = base
        self.rank = rank
        self.rows: Slice | None = base.rows
        self.dropout = dropout
        device = base.device
        self.lora_A = Factor(rank, base.in_features, device)
        self.lora_B = Factor(base.out_features, rank, device)
        self.keep_initial = keep_initial
        if keep_initial:
            self.register_buffer("initial_A", torch.zeros(rank, base.in_features, device=device))
            self.register_buffer("initial_B", torch.zeros(base.out_features, rank, device=device))
        fill_(self.lora_A.weight, self.lora_B.weight, init or kaiming_init)

    initial_A: Tensor
    initial_B: Tensor

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        scale = self.scale_of(x)
        dropout = self.dropout if self.training else 0.0
        if self.keep_initial:  # the residual base takes the whole x: it stands for a change of W itself
            y = lowrank_add(y, x, self.initial_A, -self.initial_B, scale, self.rows)
        return lowrank_add(y, x, self.lora_A.weight, self.lora_B.weight, scale, self.rows, dropout)

    def gate_width(self) -> int | None:
        """Return the width of the projection's input; PiSSA takes no gate, which would lay its initial product open."""
        return None if self.keep_initial else int(self.lora_A.weight.shape[1])

    def low_rank(self) -> tuple[Tensor, Tensor]:
        """Return B and A, with PiSSA's initial pair subtracted beside them."""
        if not self.keep_initial:
            return self.lora_B.weight, self.lora_A.weight
        left = torch.cat([self.lora_B.weight, -self.initial_B], dim=1)
        return left, torch.cat([self.lora_A.weight, self.initial_A])

    def delta(self) -> Tensor:
        """Return the change of the base's weight, (d_out, d_in), float32.

        Raises:
            TypeError: the scale is a gate; then there is no constant change.
        """
        delta = lowrank_delta(self.lora_A.weight, self.lora_B.weight, self._constant_scale())
        if self.keep_initial:
            delta = delta - lowrank_delta(self.initial_A, self.initial_B, self._constant_scale())
        return delta

    def _constant_scale(self) -> float:
        if isinstance(self.scale, nn.Module):
            raise TypeError("a gated LoRA depends on its input: it has no constant weight change")
        return float(self.scale)

    @torch.no_grad()
    def subtract_initial(self) -> None:
        """Remember the factors as they are now: from here on the part adds nothing until they move."""
        self.initial_A.copy_(self.lora_A.weight)
        self.initial_B.copy_(self.lora_B.weight)

    def adapter_tensors(self) -> dict[str, Tensor]:
        """Return the factors and PiSSA's initial pair: without it the file could not be read without the base."""
        return {**dict(self.named_parameters()), **dict(self.named_buffers(recurse=False))}

    def extra_repr(self) -> str:
        return f"rank={self.rank}, scale={self.scale if isinstance(self.scale, float) else 'gate'}"


class DoraDelta(LoraDelta):
    """DoRA: rescales every output feature of W + s B A to a trained magnitude.

    With dropout, the official code's split: W x + (c - 1) W drop(x) + c s B A drop(x), c = m / |W + s B A|.
    """

    def __init__(self, base: BaseLinear, rank: int, scale: Scale, **options: Any) -> None:
        super().__init__(base, rank, scale, **options)
        self.lora_magnitude_vector = nn.Parameter(torch.ones(base.out_features, device=base.device))
        self._norm: Tensor | None = None

    exclusive = True

    def gate_width(self) -> int | None:
        """Return None: DoRA's norm is that of a constant change."""
        return None

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        c = (self.lora_magnitude_vector / self.weight_norm()).to(y.dtype)
        dropout = self.dropout if self.training else 0.0
        bias = self.base.bias()
        own = y if self.rows is None else self.rows.take(y)
        if dropout:
            x_dropped = F.dropout(x, dropout)
            plain = F.linear(x_dropped.to(y.dtype), self.base.weight().to(y.dtype))
        else:
            x_dropped = x
            plain = own if bias is None else own - bias.to(y.dtype)
        product = lowrank_add(
            torch.zeros_like(plain), x_dropped, self.lora_A.weight, self.lora_B.weight, self.scale_of(x)
        )
        change = (c - 1) * plain + c * product
        return y + change if self.rows is None else self.rows.add(y, change)

    @torch.no_grad()
    def weight_norm(self) -> Tensor:
        """Return |W + s B A| per output feature, (d_out,), float32; kept between calls while not training."""
        if self.training:
            self._norm = None
        if self._norm is not None and self._norm.device == self.lora_A.weight.device:
            return self._norm
        norm: Tensor = torch.linalg.vector_norm(self.base.weight() + self.delta(), dim=1)
        if not self.training:
            self._norm = norm
        return norm

    @torch.no_grad()
    def set_magnitude(self) -> None:
        """Set the magnitudes to the norms of the weight as it is: DoRA starts as the identity."""
        self._norm = None
        self.lora_magnitude_vector.copy_(torch.linalg.vector_norm(self.base.weight() + self.delta(), dim=1))

    def adapter_tensors(self) -> dict[str, Tensor]:
        """Return the factors and the magnitude; the norms kept from before are forgotten, since a load may follow."""
        self._norm = None
        return super().adapter_tensors()


class EmbeddingLoraDelta(Part):
    """LoRA of a lookup table W: (vocab, d): adds s B A[:, ids], times the table's own factor where it has one (Gemma).

    Args:
        host: the embedding module.
        rank, scale: as for a projection.
        init: fills a: (r, vocab) and b: (d, r); by default a zero and b N(0, 1), as loralib and HF peft do.
        magnitude: whether DoRA's magnitude is trained, per feature.
    """

    def __init__(
        self,
        host: nn.Module,
        rank: int,
        scale: Scale,
        *,
        init: Initialiser | None = None,
        magnitude: bool = False,
    ) -> None:
        super().__init__(scale)
        weight = _table(host)
        vocabulary, width = weight.shape
        self.rank = rank
        self.lora_embedding_A = nn.Parameter(torch.empty(rank, vocabulary, dtype=torch.float32, device=weight.device))
        self.lora_embedding_B = nn.Parameter(torch.empty(width, rank, dtype=torch.float32, device=weight.device))
        if magnitude:
            self.lora_magnitude_vector = nn.Parameter(torch.ones(width, device=weight.device))
        self.magnitude = magnitude
        object.__setattr__(self, "host", host)  # no child: this part is below it
        fill_(self.lora_embedding_A, self.lora_embedding_B, init or embedding_init)

    host: nn.Module

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        hidden = F.embedding(x, self.lora_embedding_A.T, padding_idx=getattr(self.host, "padding_idx", None))
        delta = F.linear(hidden, self.lora_embedding_B) * (self.scale_of(y) * _embed_scale(self.host))
        if not self.magnitude:
            return y + delta.to(y.dtype)
        c = self.lora_magnitude_vector / self._weight_norm()
        return (c * (y + delta)).to(y.dtype)

    def low_rank(self) -> tuple[Tensor, Tensor]:
        """Return the factors of the change of the table, (vocab, k) and (k, d)."""
        return self.lora_embedding_A.T, self.lora_embedding_B.T

    def delta(self) -> Tensor:
        """Return the change of the table, (vocab, d), float32, before the table's own factor."""
        return lowrank_delta(self.lora_embedding_A, self.lora_embedding_B, float(self.scale)).T

    @torch.no_grad()
    def _weight_norm(self) -> Tensor:
        norm: Tensor = torch.linalg.vector_norm(_table(self.host).float() + self.delta(), dim=0)
        return norm

    @torch.no_grad()
    def set_magnitude(self) -> None:
        """Set the magnitudes to the norms of the table's columns as they are."""
        self.lora_magnitude_vector.copy_(self._weight_norm())


def lowrank_delta(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Return the weight change of a low-rank pair, (d_out, d_in), in float32: bf16 drops what a merge must keep.

    Args:
        a: (r, d_in).
        b: (d_out, r).
        scale: alpha / r, or alpha / sqrt(r) when rank-stabilised.
    """
    return scale * (b.float() @ a.float())


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


@torch.no_grad()
def principal_init_(part: LoraDelta, weight: Tensor, iterations: int | None) -> None:
    """Set the factors to the best rank-r approximation of `weight` over the scale, and subtract it (PiSSA).

    Args:
        part: built with `keep_initial`.
        weight: the base's, (d_out, d_in), float32.
        iterations: of the randomised decomposition; None for the exact one.
    """
    if iterations is None:
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        left, values, right = left[:, : part.rank], values[: part.rank], right[: part.rank]
    else:
        left, values, columns = torch.svd_lowrank(weight, q=part.rank, niter=iterations)
        right = columns.T
    root = (values / float(part.scale)).sqrt()
    part.lora_A.weight.copy_(root.unsqueeze(1) * right)
    part.lora_B.weight.copy_(left * root)
    part.subtract_initial()


def _table(host: nn.Module) -> Tensor:
    weight = host.weight
    assert isinstance(weight, Tensor)  # nn.Module types attributes as Tensor | Module
    return weight.detach()


def _embed_scale(host: nn.Module) -> float | Tensor:
    """Return the factor that the module multiplies its rows with (Gemma, BART), else 1."""
    factor = getattr(host, "embed_scale", None)
    return factor if isinstance(factor, (float, int, Tensor)) else 1.0
