"""How much of an adapter's effect a model has: what tells a merge that lost the adapter from one that was rounded.

The tolerance of half precision is that of its rounding, which can be more than a small adapter does. Rounding points in
no direction, so along the direction of the adapter's effect little is left of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

LEAST, MOST = 0.5, 1.5
"""What of the effect a merged model may have: less is closer to the base, and more another scaling."""
_SILENT = 1e-6
"""An effect up to this share of the largest logit (of 1 if that is greater) is no more than float32's own rounding."""


@dataclass(frozen=True)
class CarriedEffect:
    """What an adapter does to the base's outputs, and what of that is in the model that it was merged into.

    Args:
        size: mean absolute difference that the adapter makes.
        carried: by how much of that difference the merged model's outputs are away from the base's: 0 for the base,
            1 for base + adapter, 2 for twice the adapter. None where the adapter makes none.
        silent: the effect is not above the rounding of float32.
    """

    size: float
    carried: float | None
    silent: bool

    @property
    def lost(self) -> bool:
        """Whether the merged model has another effect than the adapter."""
        return self.carried is not None and not LEAST <= self.carried <= MOST


def carried_effect(plain: Tensor, adapted: Tensor, merged: Tensor) -> CarriedEffect:
    """Return what of an adapter's effect a merged model has: the projection of its own difference on the adapter's.

    Args:
        plain: (positions, classes), float32: logits of the base.
        adapted: of base + adapter.
        merged: of the merged model.
    """
    change, found = (adapted - plain).double(), (merged - plain).double()
    square = float((change * change).sum())
    size = float(change.abs().mean())
    largest = max(1.0, float(adapted.abs().max()))
    carried = float((found * change).sum()) / square if square > 0 else None
    return CarriedEffect(size, carried, size <= _SILENT * largest)
