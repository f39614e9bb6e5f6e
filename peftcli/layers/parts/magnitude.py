"""DoRA's magnitudes (Liu et al. 2024, 2402.09353): each feature of the changed weight V is rescaled to m V / |V|.

Autograd takes the norm |V| as a constant.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from peftcli.layers.site import Part


class MagnitudePart(Part):
    """What DoRA's parts have in common; it stands in front of the class that adds the low-rank change.

    A subclass makes `lora_magnitude_vector` and defines `computed_norm`.

    Attributes:
        lora_magnitude_vector: m, one number for each feature, float32.
    """

    exclusive = True
    lora_magnitude_vector: nn.Parameter
    _norm: Tensor | None = None

    def computed_norm(self, *weights: Any) -> Tensor:
        """Return |V| of each feature, of the magnitude's shape, float32; called without gradients.

        Args:
            weights: as `norm` was given them.
        """
        raise TypeError(f"{type(self).__name__} does not define computed_norm(*weights)")

    @torch.no_grad()
    def norm(self, *weights: Any) -> Tensor:
        """Return |V| of each feature, of the magnitude's shape, float32; kept between calls while not training.

        Args:
            weights: of the base, where the part does not read them itself.
        """
        if self.training:
            self._norm = None
        if self._norm is not None and self._norm.device == self.lora_magnitude_vector.device:
            return self._norm
        norm = self.computed_norm(*weights)
        if not self.training:
            self._norm = norm
        return norm

    @torch.no_grad()
    def start_from_weights(self, *weights: Any) -> None:
        """Set the magnitudes to the norms of the weights as they are: DoRA starts as the identity."""
        self.forget()
        self.lora_magnitude_vector.copy_(self.computed_norm(*weights))

    def multiplicative(self) -> list[nn.Parameter]:
        """Return the magnitudes: at the norm of the weight they do nothing."""
        return [self.lora_magnitude_vector, *super().multiplicative()]

    def forget(self) -> None:
        """Drop the norms."""
        self._norm = None

    def adapter_tensors(self) -> dict[str, Tensor]:
        """Return the factors and the magnitudes; the norms kept from before are forgotten, since a load may follow."""
        self.forget()
        return super().adapter_tensors()


def rescaling(magnitude: Tensor, norm: Tensor) -> Tensor:
    """Return m / |V|; m itself where a feature has no weights: |V| is 0 there, and 0 / 0 is no number.

    Such a feature starts with m = 0, and stays without weights.

    Args:
        magnitude, norm: of shapes that broadcast.
    """
    return magnitude / norm.masked_fill(norm == 0, 1.0)
