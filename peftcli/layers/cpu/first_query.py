"""Attention for the first position of each row, where the output of the other positions is not read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from peftcli.layers.cpu.attention_call import AttentionCall


class FirstQuery(TorchFunctionMode):
    """A context that computes `scaled_dot_product_attention` for the first query of each row only, while `expected`.

    The output has its usual shape, so that the model's code works as before: each position has the result of the first.
    That result is the usual one, because the keys and values of all positions are used.

    Attributes:
        expected: whether attention is computed this way at the moment; the caller sets it.
        taken: number of calls that were computed this way.
    """

    def __init__(self) -> None:
        super().__init__()
        self.expected = False
        self.taken = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run `func`; attention is computed for the first query if that is expected."""
        if self.expected and func is F.scaled_dot_product_attention:
            return self._attend(AttentionCall(*args, **(kwargs or {})))
        return func(*args, **(kwargs or {}))

    def _attend(self, call: AttentionCall) -> Tensor:
        if call.is_causal:  # the mask of a query depends on its position
            return call.by_torch()
        self.taken += 1
        mask = None if call.attn_mask is None else call.attn_mask.narrow(-2, 0, 1)
        first = replace(call, query=call.query.narrow(-2, 0, 1), attn_mask=mask).by_torch()
        return first.expand(*first.shape[:-2], call.query.shape[-2], first.shape[-1])
