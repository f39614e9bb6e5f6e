"""Replace calls of torch functions by this project's faster ones within a context, where they fit."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from peftcli.layers.cpu import cpu_attention, cpu_dropout
from peftcli.layers.cpu.attention_call import AttentionCall
from peftcli.layers.cpu.document_attention import DocumentAttention


class CpuPaths(TorchFunctionMode):
    """A context in which dropout and `scaled_dot_product_attention` are computed by this project's code where it fits.

    It works with every model's code, because all of it calls these functions of torch.

    Args:
        attention, dropout: which of the two to replace.
        documents: computes attention over joined rows; None if no rows are joined.
    """

    def __init__(
        self, *, attention: bool = True, dropout: bool = True, documents: DocumentAttention | None = None
    ) -> None:
        super().__init__()
        self._documents = documents
        self._attention = attention
        self._swaps: dict[Callable[..., Any], Callable[..., Tensor | None]] = {}
        if attention or documents is not None:
            self._swaps[F.scaled_dot_product_attention] = self._attend
        if dropout:
            self._swaps[F.dropout] = _dropout

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run `func`, or the function that replaces it."""
        swap = self._swaps.get(func)
        if swap is not None and (out := swap(*args, **(kwargs or {}))) is not None:
            return out
        return func(*args, **(kwargs or {}))

    def _attend(self, *args: Any, **kwargs: Any) -> Tensor | None:
        call = AttentionCall(*args, **kwargs)
        if self._documents is not None and (out := self._documents(call, self._one)) is not None:
            return out
        return self._one(call) if self._fits(call) else None

    def _one(self, call: AttentionCall) -> Tensor:
        return cpu_attention.cpu_attention(call) if self._fits(call) else call.by_torch()

    def _fits(self, call: AttentionCall) -> bool:
        return self._attention and cpu_attention.fits(call)


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor | None:
    # torch's names, since they may be given by keyword
    return cpu_dropout.cpu_dropout(input, p) if cpu_dropout.fits(input, p, training, inplace) else None
