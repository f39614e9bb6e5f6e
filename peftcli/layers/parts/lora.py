"""LoRA at one projection, with PiSSA and LoftQ: the formula, used alike by training, merging and tests.

LoRA  (Hu et al. 2021):          y = W x + b + s B A drop(x)
PiSSA (Meng et al. 2024):        y = (W - s B0 A0) x + b + s B A x, where s B0 A0 is W's best approximation of rank r
OLoRA (Buyukakyuz 2024):         the same, with B0 and A0 from W's QR decomposition
LoftQ (Li et al. 2023):          y = Q x + b + s B A x on the quantised base Q, where s B0 A0 is nearest to W - Q;
                                 on the unquantised base W, y = W x + b + s (B A - B0 A0) x
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from peftcli.layers.base_linear import BaseLinear, Slice
from peftcli.layers.parts.lora_init import Decomposition, Initialiser, fill_, kaiming_init
from peftcli.layers.parts.lowrank import lowrank_add
from peftcli.layers.site import Part, Scale


class Factor(nn.Module):
    """One factor of a low-rank pair, named `weight` so that files have the keys that other libraries read."""

    def __init__(self, rows: int, columns: int, device: torch.device | str | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, columns, dtype=torch.float32, device=device))

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, {self.weight.shape[1]}"


class LoraDelta(Part):
    """Adds s B A drop(x) to a projection's output; with an initial pair (PiSSA, OLoRA) s (B A drop(x) - B0 A0 x).

    The factors are float32 whatever the base's dtype: they are what the optimizer moves.

    Args:
        base: the frozen projection, or the rows of a fused one.
        rank: r.
        scale: s, or a gate that takes its place.
        dropout: of the low-rank branch's input.
        init: fills the factors; skipped on the meta device.
        decomposition: of the base's weight, gives the initial pair; a frozen copy of it is subtracted. None without.
        from_error: decompose what quantisation took from the weight instead (LoftQ). The pair is part of what the
            quantised base lacks, so it is subtracted on an unquantised base only.
        freeze_a: train B alone (LoRA-FA).
    """

    def __init__(
        self,
        base: BaseLinear,
        rank: int,
        scale: Scale,
        *,
        dropout: float = 0.0,
        init: Initialiser | None = None,
        decomposition: Decomposition | None = None,
        from_error: bool = False,
        freeze_a: bool = False,
    ) -> None:
        super().__init__(scale)
        self.base = base
        self.rank = rank
        self.rows: Slice | None = base.rows
        self.dropout = dropout
        device = base.device
        self.lora_A = Factor(rank, base.in_features, device)
        self.lora_B = Factor(base.out_features, rank, device)
        self.lora_A.weight.requires_grad_(not freeze_a)
        self.decomposition = decomposition
        self.from_error = from_error
        self.keep_initial = decomposition is not None
        self.subtracts = self.keep_initial and not (from_error and base.quantised)
        if self.keep_initial:
            self.register_buffer("initial_A", torch.zeros(rank, base.in_features, device=device))
            self.register_buffer("initial_B", torch.zeros(base.out_features, rank, device=device))
        fill_(self.lora_A.weight, self.lora_B.weight, init or kaiming_init)

    initial_A: Tensor
    initial_B: Tensor

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        scale = self.scale_of(x)
        dropout = self.dropout if self.training else 0.0
        if self.subtracts:  # the residual base takes the whole x: it stands for a change of W itself
            y = lowrank_add(y, x, self.initial_A, -self.initial_B, scale, self.rows)
        return lowrank_add(y, x, self.lora_A.weight, self.lora_B.weight, scale, self.rows, dropout)

    def gate_width(self) -> int | None:
        """Return the width of the projection's input; None with PiSSA: under a gate its initial pairs do not cancel."""
        return None if self.keep_initial else int(self.lora_A.weight.shape[1])

    def allotted_rank(self) -> int:
        """Return r, without that of an initial pair: the change has up to twice that rank where one is subtracted."""
        return self.lora_A.weight.shape[0]

    def low_rank(self) -> tuple[Tensor, Tensor]:
        """Return B and A, with an initial pair that is subtracted beside them."""
        if not self.subtracts:
            return self.lora_B.weight, self.lora_A.weight
        left = torch.cat([self.lora_B.weight, -self.initial_B], dim=1)
        return left, torch.cat([self.lora_A.weight, self.initial_A])

    def delta(self) -> Tensor:
        """Return the change of the base's weight, (d_out, d_in), float32.

        Raises:
            TypeError: the scale is a gate; then there is no constant change.
        """
        delta = lowrank_delta(self.lora_A.weight, self.lora_B.weight, self._constant_scale())
        if self.subtracts:
            delta = delta - lowrank_delta(self.initial_A, self.initial_B, self._constant_scale())
        return delta

    def _constant_scale(self) -> float:
        if isinstance(self.scale, nn.Module):
            raise TypeError("a gated LoRA depends on its input: it has no constant weight change")
        return float(self.scale)

    @torch.no_grad()
    def change_rank(self, rank: int, scale: float) -> None:
        """Give a part that adds nothing yet, as B is zero, another rank and scale; a gate stays in the scale's place.

        A is to be filled by the caller.
        """
        self.rank = rank
        if not isinstance(self.scale, nn.Module):
            self.scale = scale
        a, b = self.lora_A.weight, self.lora_B.weight
        # the parameters stay the same objects, so that whoever holds them sees the change
        a.data, b.data = a.new_zeros(rank, a.shape[1]), b.new_zeros(b.shape[0], rank)

    @torch.no_grad()
    def start_from_base(self) -> None:
        """Start from the base's weight, where there is a decomposition of it, and subtract the pair."""
        if self.decomposition is not None and not self.from_error:
            self._start_from(self.decomposition, self.base.weight())

    @torch.no_grad()
    def start_from_error(self, weight: Tensor) -> tuple[float, float]:
        """Start from what the quantised base lacks (LoftQ, Algorithm 1 with one step, as the base stays as it is).

        Args:
            weight: the unquantised weight of the whole projection, (features, in_features), float32, on any device.

        Returns:
            The Frobenius norm of the error over that of the weight, without the pair and with it.
        """
        assert self.decomposition is not None
        wanted = self.base.of_whole(weight).to(self.base.device)
        error = wanted - self.base.weight()
        size, before = float(torch.linalg.vector_norm(wanted)), float(torch.linalg.vector_norm(error))
        if before == 0.0:  # a pair of zeros would get no gradients
            return 0.0, 0.0
        self._start_from(self.decomposition, error)
        left = error.addmm_(self.lora_B.weight, self.lora_A.weight, alpha=-self._constant_scale())
        return before / size, float(torch.linalg.vector_norm(left)) / size

    def _start_from(self, decomposition: Decomposition, weight: Tensor) -> None:
        a, b = decomposition(weight, self.rank, self._constant_scale())
        self.lora_A.weight.copy_(a)
        self.lora_B.weight.copy_(b)
        self.subtract_initial()

    @torch.no_grad()
    def subtract_initial(self) -> None:
        """Remember the factors as they are now: from here on the part adds nothing until they move."""
        self.initial_A.copy_(self.lora_A.weight)
        self.initial_B.copy_(self.lora_B.weight)

    def adapter_tensors(self) -> dict[str, Tensor]:
        """Return the factors and the initial pair: without it the file could not be read without the base."""
        return {**dict(self.named_parameters()), **dict(self.named_buffers(recurse=False))}

    def extra_repr(self) -> str:
        return f"rank={self.rank}, scale={self.scale if isinstance(self.scale, float) else 'gate'}"


def lowrank_delta(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Return the weight change of a low-rank pair, (d_out, d_in), in float32: bf16 would round small terms away.

    Args:
        a: (r, d_in).
        b: (d_out, r).
        scale: alpha / r, or alpha / sqrt(r) when rank-stabilised.
    """
    return scale * (b.float() @ a.float())
