"""The rest of a block at the first position of each row, where nothing else of the block's output is read.

Saves the largest part of a classifier's last block: attention asks for one query instead of all, and everything
behind it (the output projection, the feed-forward part, norms, dropout) gets one position of each row. Keys and values
are of all positions as before, so that the first one's value is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from peftcli.layers.cpu.attention_call import AttentionCall

_SHAPING = {Tensor.reshape, Tensor.view, torch.reshape}
_BY_ELEMENT = {
    *(getattr(torch, name) for name in ("add", "sub", "mul", "where")),
    *(getattr(Tensor, name) for name in ("add", "add_", "sub", "sub_", "mul", "mul_", "where")),
    *(getattr(Tensor, f"__{name}__") for name in ("add", "radd", "iadd", "sub", "mul", "rmul", "imul")),
}
"""Where the attention's output can meet something of all positions; a matrix of a part has a shape of its own."""


class FirstPosition(TorchFunctionMode):
    """While active, attention that `expect` announced is computed for the first position, and what is behind follows.

    What was computed of all positions before (the residual, and what parts made of the block's input) is cut to the
    first one where it meets the attention's output; a shape that model code took from its input is cut likewise. Any
    model code is served, since it calls torch in the end; whether it may be is tried on the model itself
    (`training.last_block`).

    Attributes:
        taken: attention calls that were cut.
    """

    def __init__(self) -> None:
        super().__init__()
        self._length = 0
        self.taken = 0

    def expect(self, length: int) -> None:
        """Cut the next attention, that of the last block.

        Args:
            length: positions of its input, (batch, length, hidden).
        """
        self._length = length if length > 1 else 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run `func` on the first position."""
        if func is F.scaled_dot_product_attention and self._length:
            return self._attend(AttentionCall(*args, **(kwargs or {})))
        if self.taken and func in _SHAPING:
            args = self._shape(args)
        elif self.taken and func in _BY_ELEMENT:
            args = self._first(args)
        return func(*args, **(kwargs or {}))

    def _attend(self, call: AttentionCall) -> Tensor:
        query, mask = call.query, call.attn_mask
        if query.dim() != 4 or query.shape[2] != self._length or call.is_causal:
            return call.by_torch()
        self.taken += 1
        if mask is not None and mask.dim() > 1 and mask.shape[-2] == self._length:
            mask = mask.narrow(-2, 0, 1)
        return replace(call, query=query.narrow(2, 0, 1), attn_mask=mask).by_torch()

    def _first(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Cut arguments of all positions to the first, beside one that has only that."""
        if not any(_positions(x) == 1 for x in args):
            return args
        return tuple(x.narrow(1, 0, 1) if _positions(x) == self._length else x for x in args)

    def _shape(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Cut a shape (batch, length, ...) or (batch, heads, length, ...) where the tensor has one position there."""
        x, *rest = args
        asked = list(rest[0] if rest and isinstance(rest[0], (tuple, list)) else rest)
        for place in (1, 2):
            if place < min(x.dim(), len(asked)) and asked[place] == self._length and x.shape[place] == 1:
                return (x, (*asked[:place], 1, *asked[place + 1 :]))
        return args


def _positions(x: Any) -> int | None:
    """Return the positions of (batch, positions, width)."""
    return int(x.shape[1]) if isinstance(x, Tensor) and x.dim() == 3 else None
