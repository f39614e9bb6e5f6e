"""Routes `cache_view` and `padded_rows`: prefixes by hooks, for attentions outside transformers' attention interface.

`cache_view` (Bloom, GPT-Neo, Falcon): the attention calls `layer_past.update(key, value, layer)` and goes on with
what it returns. A small view takes the cache's place: it updates the real cache, if any, and puts the prefix in
front of what it returns. Mask, ALiBi biases and GPT-Neo's buffer of allowed positions grow by the same columns.

`padded_rows` (DeBERTa): its position terms are built for square attention, so rows are added to the input instead:
zeros, whose keys and values are overwritten after the projections, and whose outputs are dropped.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from peftcli.layers.virtual_tokens.prefix import PrefixSite, PrefixStates
from peftcli.layers.virtual_tokens.prefix_interface import extended_mask

_BUFFER = "bias"
"""GPT-Neo's (1, 1, n, n) bool buffer of allowed positions; other attentions have a parameter or nothing there."""


class CacheView:
    """Stands in for a layer's cache: what `update` returns has the prefix in front.

    Args:
        cache: the real one, or None (training, checkpointing).
        states: the prefix.
        crop: keep this many of the keys only (an empty static cache is longer than what was written).
    """

    def __init__(self, cache: Any, states: PrefixStates, crop: int | None) -> None:
        self._cache = cache
        self._states = states
        self._crop = crop

    def update(self, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Return prefix + cached + new keys and values, (batch, heads, p + keys, head_dim)."""
        if self._cache is not None:
            key, value = self._cache.update(key, value, *args, **kwargs)
        if self._crop is not None:
            key, value = key[:, :, : self._crop], value[:, :, : self._crop]
        return _in_front(self._states.key, key), _in_front(self._states.value, value)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)


class SeenView:
    """Stands in for a layer's cache, and notes the keys and values that it is given.

    Args:
        seen: they are appended to it.
    """

    def __init__(self, seen: list[tuple[Tensor, Tensor]]) -> None:
        self._seen = seen

    def update(self, key: Tensor, value: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        """Return the keys and values as they are."""
        self._seen.append((key, value))
        return key, value


def _in_front(prefix: Tensor, states: Tensor) -> Tensor:
    repeat = states.shape[1] // prefix.shape[1]  # Falcon repeats grouped heads before it updates the cache
    prefix = prefix.repeat_interleave(repeat, dim=1) if repeat > 1 else prefix
    return torch.cat([prefix.expand(states.shape[0], -1, -1, -1), states], dim=2)


def connect_cache_view(attention: nn.Module, site: PrefixSite) -> None:
    """Hook an attention that takes `layer_past`, so that it sees the prefixes of `site`."""
    signature = inspect.signature(attention.forward)
    allowed = attention._buffers.get(_BUFFER)
    if allowed is not None:
        site.register_buffer("allowed", allowed, persistent=False)

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if allowed is not None:
            _fit_buffer(module, site)
        bound = signature.bind(*args, **kwargs)
        hidden = next(iter(bound.arguments.values()))
        states = site.states(hidden.dtype)
        given = bound.arguments
        if states is None:
            if site.seen is None:
                return None
            given["layer_past"] = SeenView(site.seen)
            return bound.args, bound.kwargs
        length = hidden.shape[1]
        implicit = given.get("attention_mask") is None and length > 1
        mask = extended_mask(given.get("attention_mask"), states.length, hidden.unsqueeze(1), length, True)
        if mask is not None and not mask.dtype.is_floating_point and not _takes_bool(module):
            mask = torch.zeros_like(mask, dtype=hidden.dtype).masked_fill(~mask, torch.finfo(hidden.dtype).min)
        given["attention_mask"] = mask
        if given.get("alibi") is not None:
            given["alibi"] = functional.pad(given["alibi"], (states.length, 0))
        given["layer_past"] = CacheView(given.get("layer_past"), states, length if implicit else None)
        return bound.args, bound.kwargs

    attention.register_forward_pre_hook(before, with_kwargs=True)


def _takes_bool(module: nn.Module) -> bool:
    """Return whether the attention hands its mask to sdpa; the written-out arithmetic adds it to the scores."""
    config = getattr(module, "config", None)
    return getattr(config, "_attn_implementation", "eager") == "sdpa"


def _fit_buffer(module: nn.Module, site: PrefixSite) -> None:
    """Give GPT-Neo's buffer of allowed positions the active prefix's columns and as many rows.

    Its rows are counted from the end of the keys, so they start as many rows later as the prefix is long.
    """
    own = site.get_buffer("allowed")
    if module.get_buffer(_BUFFER).shape[-1] != own.shape[-1] + site.length:
        module._buffers[_BUFFER] = functional.pad(own, (site.length, 0, site.length, 0), value=True)


def connect_padded_rows(attention: nn.Module, site: PrefixSite) -> None:
    """Hook an attention with projections `key_proj` and `value_proj` over square position terms."""
    pending: dict[str, Tensor] = {}
    noted: dict[str, Tensor] = {}
    signature = inspect.signature(attention.forward)

    def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        bound = signature.bind(*args, **kwargs)
        given = bound.arguments
        hidden = given["hidden_states"]
        states = site.states(hidden.dtype)
        pending.clear()
        noted.clear()
        if states is None:
            return None
        rows = states.length
        batch = hidden.shape[0]
        for name, tensor in (("key_proj", states.key), ("value_proj", states.value)):
            pending[name] = tensor.expand(batch, -1, -1, -1).transpose(1, 2).flatten(2)
        given["hidden_states"] = functional.pad(hidden, (0, 0, rows, 0))
        if given.get("query_states") is not None:
            given["query_states"] = functional.pad(given["query_states"], (0, 0, rows, 0))
        given["attention_mask"] = functional.pad(given["attention_mask"], (rows, 0, rows, 0), value=1)
        given["relative_pos"] = None  # the attention then builds it for the longer sequence
        return bound.args, bound.kwargs

    def overwrite(name: str) -> Any:
        def hook(_module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> Tensor | None:
            if site.seen is not None and name not in noted:
                noted[name] = _per_head(output, site)
                if len(noted) == 2:
                    site.seen.append((noted["key_proj"], noted["value_proj"]))
            prefix = pending.pop(name, None)  # only the first call: with shared keys the second one is for positions
            return None if prefix is None else torch.cat([prefix.to(output.dtype), output[:, prefix.shape[1] :]], dim=1)

        return hook

    def after(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        return (output[0][:, site.length :], *output[1:]) if site.active else output

    attention.register_forward_pre_hook(before, with_kwargs=True)
    for name in ("key_proj", "value_proj"):
        attention.get_submodule(name).register_forward_hook(overwrite(name))
    attention.register_forward_hook(after)


def _per_head(states: Tensor, site: PrefixSite) -> Tensor:
    """Return (batch, seq, heads * head_dim) as (batch, heads, seq, head_dim)."""
    shape = site.prefixes()[0].shape
    return states.view(*states.shape[:2], shape.kv_heads, shape.head_dim).transpose(1, 2)
