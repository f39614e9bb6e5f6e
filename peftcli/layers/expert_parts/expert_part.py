"""What parts at experts have in common: which experts they change, and how they come into one pass of the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from peftcli.distributed.whole_tensors import whole
from peftcli.layers.base_linear import Slice
from peftcli.layers.site import Part

Entering = Callable[[int, Tensor], Tensor]
"""From an expert's number and its rows (rows, in) to the rows that its weight gets."""
Leaving = Callable[[int, Tensor, Tensor], Tensor]
"""From an expert's number, its rows (rows, in) and what its projection made of them (rows, out), whose memory may be
reused, to what it makes with the part."""


@dataclass(frozen=True)
class ExpertsView:
    """The frozen projections of all experts that lie in one 3-D parameter.

    Args:
        host: the module that holds the parameter.
        parameter: its name there.
    """

    host: nn.Module
    parameter: str

    def weights(self) -> tuple[Tensor, ...]:
        """Return every expert's weight, (out, in); ask once a pass: where they are trained they get one gradient.

        Outside a pass every process must ask where the base is divided: the experts are gathered.
        """
        live: Any = self.host
        weights: tuple[Tensor, ...] = whole(getattr(live, self.parameter)).unbind(0)
        return tuple(weight.T for weight in weights) if live.is_transposed else weights

    def biases(self) -> tuple[Tensor, ...] | None:
        """Return every expert's bias, (out,), gathered likewise; None where there is none."""
        live: Any = self.host
        return whole(getattr(live, f"{self.parameter}_bias")).unbind(0) if live.has_bias else None


class ExpertPart(Part):
    """What one method changes at the experts of one 3-D parameter.

    Args:
        base: the experts.
        numbers: of those that are changed.
        rows: the output features, if the parameter is fused and only a role of it is changed.
        scale: s.
    """

    def __init__(self, base: ExpertsView, numbers: Sequence[int], rows: Slice | None, scale: float = 1.0) -> None:
        super().__init__(scale)
        self.base, self.rows = base, rows
        self.positions = {expert: position for position, expert in enumerate(numbers)}

    def entering(self) -> Entering | None:
        """Return what happens to the rows of each expert in this pass; None where nothing does."""
        return None

    def leaving(self, weights: Sequence[Tensor], biases: Sequence[Tensor] | None) -> Leaving | None:
        """Return what happens to each expert's outputs in this pass; None where nothing does.

        Args:
            weights: `ExpertsView.weights()` of this pass.
            biases: likewise.
        """
        return None
