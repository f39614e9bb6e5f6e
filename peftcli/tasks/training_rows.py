"""Training rows, for methods that start from what the frozen base makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]


def _alone(value: Any) -> Any:
    """Return what the only process says."""
    return value


@dataclass(frozen=True)
class TrainingRows:
    """The rows of a new run, as the base takes them; the same on every process.

    Args:
        batches: returns the micro-batches from the first step on, on the model's device: `input_ids` (batch, seq),
            `attention_mask`, `labels`, ...; no virtual tokens are in them.
        agreed: returns the main process's value, for what must not differ between processes by a rounding (a rank).
        notes: what was started from them, for the user.
    """

    batches: Callable[[], Iterator[Tensors]]
    agreed: Callable[[Any], Any] = _alone
    notes: list[str] = field(default_factory=list)

    def first_tokens(self, count: int) -> Tensor | None:
        """Return the ids of the first tokens, (1, count), row behind row without padding; None without text.

        Rows that hold fewer tokens than that are repeated.
        """
        found: list[Tensor] = []
        length = 0
        for batch in self.batches():
            ids, mask = batch.get("input_ids"), batch.get("attention_mask")
            if ids is None or ids.is_floating_point():
                return None
            real = ids[mask.bool()] if mask is not None and mask.shape == ids.shape else ids.flatten()
            found.append(real)
            length += len(real)
            if length >= count:
                break
        if not length:
            return None
        return torch.cat(found).repeat(-(-count // length))[:count].unsqueeze(0)
