"""Which of the faster ways to compute the same a run's forward passes take."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass

import torch

from peftcli.layers.cpu.cpu_paths import CpuPaths
from peftcli.layers.cpu.document_attention import DocumentAttention
from peftcli.layers.parts.lowrank import plain_lowrank
from peftcli.recipe.schema import Recipe
from peftcli.training.speed.last_block import LastBlock


@dataclass(frozen=True)
class AllowedPaths:
    """The faster ways that a recipe and a device allow; the model may still not allow the last two.

    Args:
        lowrank: LoRA's products in one autograd node.
        attention: this project's attention on a CPU.
        dropout: its dropout on a CPU.
        by_document: attention document by document over rows that were joined (`training.speed.padding_free`).
        last_block: a classifier's last block cut to the position that its head reads (`training.speed.last_block`).
    """

    lowrank: bool
    attention: bool
    dropout: bool
    by_document: bool
    last_block: bool

    @classmethod
    def of(cls, recipe: Recipe, device: torch.device) -> AllowedPaths:
        """Return what a recipe allows: `attn_implementation: sdpa` keeps torch's attention, compiled blocks choose
        for themselves."""
        switches, compiled = recipe.training.fast_paths, recipe.training.torch_compile
        swaps = device.type == "cpu" and not compiled
        own = swaps and recipe.model.attn_implementation == "auto"
        return cls(
            lowrank=switches.lowrank,
            attention=own and switches.attention,
            dropout=swaps and switches.dropout,
            by_document=own and switches.padding_free,
            last_block=switches.last_block and not compiled,
        )


class FastPaths:
    """Makes the context of a training forward pass, and of its recomputation under checkpointing.

    Args:
        allowed: by the recipe and the device.
        by_document: whether the model was found to keep documents of one row apart.
        last_block: the block that is cut, where the model was found to allow it.
    """

    def __init__(
        self, allowed: AllowedPaths, *, by_document: bool = False, last_block: LastBlock | None = None
    ) -> None:
        self.by_document = by_document
        self._allowed, self._last_block = allowed, last_block
        self._documents: DocumentAttention | None = None

    def found(self) -> dict[str, str]:
        """Return what this model was found to allow, in words, for the record of a run."""
        both = {"joining rows without padding": self.by_document, "a short last block": self._last_block is not None}
        return {name: "on" if on else "off" for name, on in both.items()}

    @contextmanager
    def __call__(self, documents: DocumentAttention | None = None) -> Iterator[None]:
        """Be in the context.

        Args:
            documents: of a row that several were joined to.
        """
        allowed = self._allowed
        with ExitStack() as stack:
            stack.enter_context(plain_lowrank(not allowed.lowrank))
            if allowed.attention or allowed.dropout or documents is not None:
                paths = CpuPaths(attention=allowed.attention, dropout=allowed.dropout, documents=documents)
                stack.enter_context(paths)
            if self._last_block is not None:
                stack.enter_context(self._last_block.cut())
            before, self._documents = self._documents, documents
            try:
                yield
            finally:
                self._documents = before

    def again(self) -> AbstractContextManager[None]:
        """Return the present context once more, for recomputing later what is computed now."""
        return self(self._documents)
