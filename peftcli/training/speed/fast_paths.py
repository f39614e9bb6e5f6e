"""Which of the faster ways to compute the same a run's forward passes take."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

import torch

from peftcli.layers.cpu.cpu_paths import CpuPaths
from peftcli.layers.cpu.document_attention import DocumentAttention
from peftcli.layers.parts.lowrank import plain_lowrank
from peftcli.recipe.schema import Recipe
from peftcli.training.speed.last_block import LastBlock


class FastPaths:
    """Makes the context of a training forward pass, and of its recomputation under checkpointing.

    `model.attn_implementation: sdpa` keeps torch's attention. Compiled blocks choose for themselves.

    Attributes:
        may_go_by_document: whether the recipe and the device let attention be computed document by document.
        by_document: whether it is: the model was found to keep documents of one row apart (`training.padding_free`).
        may_cut: whether the recipe lets a classifier's last block be cut to the position that its head reads.
        last_block: that block, where the model was found to allow it (`training.last_block`).
    """

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        self._switches = recipe.training.fast_paths
        swaps = device.type == "cpu" and not recipe.training.torch_compile
        own = swaps and recipe.model.attn_implementation == "auto"
        self._attention = own and self._switches.attention
        self._dropout = swaps and self._switches.dropout
        self.by_document = False
        self.may_go_by_document = own and self._switches.padding_free
        self.may_cut = self._switches.last_block and not recipe.training.torch_compile
        self.last_block: LastBlock | None = None
        self._documents: DocumentAttention | None = None

    @contextmanager
    def __call__(self, documents: DocumentAttention | None = None) -> Iterator[None]:
        """Be in the context.

        Args:
            documents: of a row that several were joined to.
        """
        with ExitStack() as stack:
            stack.enter_context(plain_lowrank(not self._switches.lowrank))
            if self._attention or self._dropout or documents is not None:
                paths = CpuPaths(attention=self._attention, dropout=self._dropout, documents=documents)
                stack.enter_context(paths)
            if self.last_block is not None:
                stack.enter_context(self.last_block.cut())
            before, self._documents = self._documents, documents
            try:
                yield
            finally:
                self._documents = before

    def again(self) -> AbstractContextManager[None]:
        """Return the present context once more, for recomputing later what is computed now."""
        return self(self._documents)
