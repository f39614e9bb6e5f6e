"""One copy of the frozen matrices in the dtype that training computes in.

Saves: autocast casts every frozen float32 matrix anew in each forward pass, which is a sixth of a bfloat16 step on a
CPU. Costs no memory at the peak: autocast keeps the same casts of all blocks until the backward pass. (Under
checkpointing it keeps one block's, so no copies are made there.) The copies are parameters of their own that take the
place of the frozen ones in their modules; evaluation computes with the frozen ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from peftcli.distributed.whole_tensors import is_share
from peftcli.layers.added_modules import is_added
from peftcli.layers.quantised.quantised_weights import is_quantised


class ComputeWeights:
    """Puts copies in the place of a model's frozen matrices, and the matrices back.

    Args:
        model: the live model, parts attached.
        dtype: of the copies; None makes none, which is the plain path.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype | None) -> None:
        self._model = model
        self._dtype = dtype
        self._projections: list[nn.Module] = []
        self._originals: list[nn.Parameter] = []
        self._copies: list[nn.Parameter] = []

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Compute with the copies inside; they are dropped at the end."""
        if self._dtype is not None:
            self._projections = frozen_projections(self._model)
            self._originals = [projection.get_parameter("weight") for projection in self._projections]
            self._copies = [nn.Parameter(own.detach().to(self._dtype), requires_grad=False) for own in self._originals]
            self._put(self._copies)
        try:
            yield
        finally:
            self._put(self._originals)
            self._projections, self._originals, self._copies = [], [], []

    @contextmanager
    def set_aside(self) -> Iterator[None]:
        """Compute with the weights' own values inside."""
        self._put(self._originals)
        try:
            yield
        finally:
            self._put(self._copies)

    def _put(self, weights: list[nn.Parameter]) -> None:
        for projection, weight in zip(self._projections, weights, strict=True):
            projection.register_parameter("weight", weight)


def frozen_projections(model: nn.Module) -> list[nn.Module]:
    """Return the base model's projections whose frozen float32 weight nobody else reads.

    Left out are tied weights, and those that are no plain parameter: a sharded weight belongs to FSDP, which puts
    another tensor in its place for each pass and can cast it by itself (`MixedPrecisionPolicy`).
    """
    readers = Counter(id(p) for module in model.modules() for p in module._parameters.values() if p is not None)
    found = [
        module
        for name, module in model.named_modules()
        if type(module) in (nn.Linear, Conv1D) and not is_added(name) and _is_ours(module)
    ]
    return [module for module in found if readers[id(module.weight)] == 1]


def _is_ours(module: nn.Module) -> bool:
    weight = module.get_parameter("weight")
    if is_quantised(module):  # of a class of its own, which says that it is float32
        return False
    return not is_share(weight) and weight.dtype == torch.float32 and not weight.requires_grad
