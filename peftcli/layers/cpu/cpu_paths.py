"""Replace calls of torch functions by this project's own within a context: faster ones, and dropout drawn by rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from peftcli.layers.cpu import cpu_attention
from peftcli.layers.cpu.attention_call import AttentionCall
from peftcli.layers.cpu.document_attention import DocumentAttention
from peftcli.layers.dropout import dropout as drop
from peftcli.layers.row_draws import is_drawing

SMALLEST = 4096
"""Number of elements below which torch's dropout is faster; within a pass, rows decide and not speed."""


class CpuPaths(TorchFunctionMode):
    """A context in which dropout and `scaled_dot_product_attention` are computed by this project's code where it fits.

    It works with every model's code, because all of it calls these functions of torch. On a GPU the attention is
    torch's, whose kernels draw their own masks.

    Args:
        attention, dropout: which of the two to replace.
        documents: computes attention over joined rows; None if no rows are joined.
    """

    def __init__(
        self, *, attention: bool = True, dropout: bool = True, documents: DocumentAttention | None = None
    ) -> None:
        super().__init__()
        self._documents = documents
        self._attention, self._draws = attention, dropout
        self._attends = attention or dropout or documents is not None

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run `func`, or the function that replaces it."""
        if self._attends and func is F.scaled_dot_product_attention:
            return self._attend(*args, **(kwargs or {}))
        if self._draws and func is F.dropout and (out := _dropout(*args, **(kwargs or {}))) is not None:
            return out
        return func(*args, **(kwargs or {}))

    def _attend(self, *args: Any, **kwargs: Any) -> Tensor:
        call = AttentionCall(*args, **kwargs)
        if self._documents is not None and (out := self._documents(call, self._one)) is not None:
            return out
        return self._one(call)

    def _one(self, call: AttentionCall) -> Tensor:
        if self._attention and cpu_attention.fits(call):
            return cpu_attention.cpu_attention(call)
        drawn = self._draws and 0.0 < call.dropout_p < 1.0 and call.query.device.type == "cpu" and is_drawing()
        return call.with_drawn_dropout() if drawn else call.by_torch()


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor | None:
    # torch's names, since they may be given by keyword
    if not training or not 0.0 < p < 1.0 or not input.is_floating_point():
        return None
    if not is_drawing() and (inplace or input.device.type != "cpu" or input.numel() < SMALLEST):
        return None
    return input.copy_(drop(input, p)) if inplace else drop(input, p)
