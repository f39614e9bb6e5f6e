"""Which of the faster ways to compute the same a run's forward passes take."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from peftcli.layers.cpu.cpu_paths import CpuPaths
from peftcli.layers.cpu.document_attention import DocumentAttention
from peftcli.layers.cpu.wide_products import wide_products
from peftcli.layers.parts.lowrank import plain_lowrank
from peftcli.layers.row_draws import DrawnRows, drawing, same_again
from peftcli.models.last_block import LastBlock
from peftcli.recipe.schema import Recipe


@dataclass(frozen=True)
class AllowedPaths:
    """The faster ways that a recipe and a device allow; the model may still not allow the last three.

    Args:
        lowrank: LoRA's products in one autograd node.
        attention: this project's attention on a CPU.
        dropout: its dropout, drawn by rows, in place of the base's own.
        by_document: attention document by document over rows that were joined (`training.speed.padding_free`).
        shared_prompts: a prompt once for both answers to it, among joined rows (`training.speed.sharing_prompts`).
        last_block: a classifier's last block cut to the position that its head reads (`models.last_block`).
        wide_products: bfloat16 products in float32, on a CPU that would emulate them.
    """

    lowrank: bool
    attention: bool
    dropout: bool
    by_document: bool
    shared_prompts: bool
    last_block: bool
    wide_products: bool

    @classmethod
    def of(cls, recipe: Recipe, device: torch.device, model: nn.Module | None = None) -> AllowedPaths:
        """Return what a recipe allows: `attn_implementation: sdpa` keeps torch's attention, compiled blocks choose
        for themselves.

        Args:
            model: the base; on a GPU only a base that has dropout has it replaced, since looking at calls takes time.
        """
        switches, compiled = recipe.training.fast_paths, recipe.training.torch_compile is True
        swaps = device.type == "cpu" and not compiled
        own = swaps and recipe.model.attn_implementation == "auto"
        return cls(
            lowrank=switches.lowrank,
            attention=own and switches.attention,
            dropout=switches.dropout and (swaps or (not compiled and model is not None and _drops(model))),
            by_document=own and switches.padding_free,
            shared_prompts=own and switches.padding_free and switches.shared_prompts,
            last_block=switches.last_block and not compiled,
            wide_products=switches.wide_products and swaps,
        )


def _drops(model: nn.Module) -> bool:
    """Return whether a model has dropout of its own: a module that is one, or a rate in its config."""
    config = getattr(model, "config", None)
    rates = [value for key, value in config.to_dict().items() if "drop" in key] if config is not None else []
    rates += [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
    return any(isinstance(rate, float) and rate > 0 for rate in rates)


class FastPaths:
    """Makes the context of a training forward pass, and of its recomputation under checkpointing.

    Args:
        allowed: by the recipe and the device.
        by_document: whether the model was found to keep documents of one row apart.
        shares_prompts: whether it was found to compute two answers behind one prompt as if each had its own.
        last_block: the block that is cut, where the model was found to allow it.
    """

    def __init__(
        self,
        allowed: AllowedPaths,
        *,
        by_document: bool = False,
        shares_prompts: bool = False,
        last_block: LastBlock | None = None,
    ) -> None:
        self.by_document, self.shares_prompts = by_document, shares_prompts
        self._allowed, self.last_block = allowed, last_block
        self._documents: DocumentAttention | None = None

    def found(self) -> dict[str, str]:
        """Return what this model was found to allow, in words, for the record of a run."""
        each = {
            "joining rows without padding": self.by_document,
            "computing a shared prompt once": self.shares_prompts,
            "a short last block": self.last_block is not None,
        }
        return {name: "on" if on else "off" for name, on in each.items()}

    @property
    def draws_dropout(self) -> bool:
        """Whether the base's own dropout is drawn by rows."""
        return self._allowed.dropout

    @contextmanager
    def __call__(self, documents: DocumentAttention | None = None, rows: DrawnRows | None = None) -> Iterator[None]:
        """Be in the context.

        Args:
            documents: of a row that several were joined to.
            rows: for which random masks are drawn; None leaves them to torch's random state.
        """
        with drawing(rows), self._paths(documents):
            yield

    @contextmanager
    def _paths(self, documents: DocumentAttention | None) -> Iterator[None]:
        allowed = self._allowed
        with ExitStack() as stack:
            stack.enter_context(plain_lowrank(not allowed.lowrank))
            stack.enter_context(wide_products(allowed.wide_products))  # outside: the paths hand their attention to it
            if allowed.attention or allowed.dropout or documents is not None:
                paths = CpuPaths(attention=allowed.attention, dropout=allowed.dropout, documents=documents)
                stack.enter_context(paths)
            if self.last_block is not None:
                stack.enter_context(self.last_block.cut())
            before, self._documents = self._documents, documents
            try:
                yield
            finally:
                self._documents = before

    def backward(self) -> AbstractContextManager[None]:
        """Return the context of a backward pass: functions that other libraries derive by hand make products there."""
        return wide_products(self._allowed.wide_products)

    def again(self) -> AbstractContextManager[None]:
        """Return the present context once more, for recomputing later what is computed now."""
        return _both(same_again(), self._paths(self._documents))


@contextmanager
def _both(first: AbstractContextManager[None], second: AbstractContextManager[None]) -> Iterator[None]:
    with first, second:
        yield
