"""One copy of the frozen matrices in the dtype that training computes in.

Saves: autocast casts every frozen float32 matrix anew in each forward pass, which is a sixth of a bfloat16 step on a
CPU. Costs no memory at the peak: autocast keeps the same casts of all blocks until the backward pass. (Under
checkpointing it keeps one block's, so no copies are made there.) The float32 values are put aside, not changed:
evaluation computes with them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from peftcli.layers.added_modules import is_added


class ComputeWeights:
    """Puts copies in the place of a model's frozen matrices, and the matrices back.

    Args:
        model: the live model, parts attached.
        dtype: of the copies; None makes none, which is the plain path.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype | None) -> None:
        self._model = model
        self._dtype = dtype
        self._originals: list[tuple[nn.Parameter, Tensor]] = []
        self._copies: list[Tensor] = []

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Compute with the copies inside; they are dropped at the end."""
        if self._dtype is not None:
            self._originals = [(weight, weight.data) for weight in frozen_matrices(self._model)]
            self._copies = [original.to(self._dtype) for _, original in self._originals]
            self._put_copies()
        try:
            yield
        finally:
            self._put_originals()
            self._originals, self._copies = [], []

    @contextmanager
    def set_aside(self) -> Iterator[None]:
        """Compute with the weights' own values inside."""
        self._put_originals()
        try:
            yield
        finally:
            self._put_copies()

    def _put_copies(self) -> None:
        for (weight, _), copy in zip(self._originals, self._copies, strict=True):
            weight.data = copy

    def _put_originals(self) -> None:
        for weight, original in self._originals:
            weight.data = original


def frozen_matrices(model: nn.Module) -> list[nn.Parameter]:
    """Return the base model's frozen float32 weights that only a projection reads; tied ones are left out."""
    readers = Counter(id(p) for module in model.modules() for p in module._parameters.values() if p is not None)
    found = [
        module.weight
        for name, module in model.named_modules()
        if type(module) in (nn.Linear, Conv1D) and not is_added(name)
    ]
    return [w for w in found if w.dtype == torch.float32 and not w.requires_grad and readers[id(w)] == 1]
