"""Shift a decoder's positions, for prefixes that count as the first positions."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


def shift_positions(stack: nn.Module, by: Callable[[], int]) -> RemovableHandle | None:
    """Add `by()` to the position ids that `stack` receives, making them first where it receives none.

    Args:
        stack: the decoder, whose forward takes `position_ids`.
        by: positions to add, asked at every call.

    Returns:
        The hook's handle, or None if the stack takes no position ids (ALiBi).
    """
    parameters = list(inspect.signature(stack.forward).parameters)
    if "position_ids" not in parameters:
        return None

    def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        shift = by()
        if not shift:
            return None
        named = {**dict(zip(parameters, args, strict=False)), **kwargs}
        positions = named.get("position_ids")
        named["position_ids"] = (_positions(named) if positions is None else positions) + shift
        return (), named

    return stack.register_forward_pre_hook(before, with_kwargs=True)


def _positions(call: dict[str, Any]) -> Tensor:
    """Return positions (batch or 1, seq) from 0 at the first token that the mask shows, behind what the cache holds."""
    given = call.get("input_ids")
    inputs: Tensor = given if given is not None else call["inputs_embeds"]
    length = inputs.shape[1]
    mask = call.get("attention_mask")
    if isinstance(mask, Tensor) and mask.dim() == 2:
        return (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -length:]
    cache = call.get("cache", call.get("past_key_values"))  # transformers 5.24 renamed it
    past = 0 if cache is None else int(cache.get_seq_length())
    return torch.arange(past, past + length, device=inputs.device)[None]
