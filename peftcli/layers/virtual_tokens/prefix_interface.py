"""Route `interface`: prefixes through one attention function registered with transformers' AttentionInterface.

The function gets query, key and value after projection, position encoding and cache update. It puts the prefix of the
attention module in front, extends the mask and calls the library's sdpa function. Soft-capped scores
(Gemma 2) and attention sinks (GPT-OSS) are computed here, since sdpa does not know them and would leave them out.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface

from peftcli.layers.dropout import dropout
from peftcli.layers.virtual_tokens.prefix import PrefixStates, find_prefix_site

_INTERFACE = "ALL_ATTENTION_FUNCTIONS"
_SINKS = "s_aux"
"""The option with a learned score of each head, (heads,): it takes a share of a query's weights and has no value."""
_BY_NAME = "_attn_implementation in ("
"""How code asks for the implementations whose masks it makes itself."""
ATTENTION_NAME = "peft_prefix_attention"
"""Free of `sdpa`, `flash` and `flex`: transformers refuses or reinterprets names that hold them."""
_MASKS = {ATTENTION_NAME: "sdpa", f"{ATTENTION_NAME}_adding_masks": "eager"}
"""The names under which the function is registered, and whose masks it gets under each."""


def register(before: str) -> str:
    """Make the attention and mask functions known to transformers; repeatable.

    Args:
        before: the model's own way to compute attention.

    Returns:
        The name under which masks have the form that they had before: some models read them elsewhere, too, as
        NLLB-MoE's routers do, for which zero is a token that counts.
    """
    for name, masks in _MASKS.items():
        AttentionInterface.register(name, prefix_attention)
        # without a mask function of the same name every mask would arrive as None, and padding would be attended to
        AttentionMaskInterface.register(name, AttentionMaskInterface()[masks])
    if before in _MASKS:
        return before
    return next((name for name, masks in _MASKS.items() if masks == before), ATTENTION_NAME)


def calls_interface(kind: type[nn.Module]) -> bool:
    """Tell whether a class of attention modules calls transformers' registered functions; yes where its code is hidden.

    Some models do in one stack only: the encoders of LongT5, PEGASUS-X and BigBird-Pegasus look at parts of a text.
    """
    try:
        return any(_INTERFACE in inspect.getsource(each) for each in kind.__mro__ if each not in nn.Module.__mro__)
    except (OSError, TypeError):  # made while running, or without its source
        return True


def hides_by_name(module: nn.Module) -> bool:
    """Tell whether an attention has an indexer whose choice of keys is in the masks of known functions alone.

    MiniMax M3 masks for `eager` and `sdpa`; any other function gets the choice as an option, and a dense mask.
    """
    try:
        return getattr(module, "indexer", None) is not None and _BY_NAME in inspect.getsource(type(module))
    except (OSError, TypeError):  # made while running, or without its source
        return False


def prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Return the attention output, (batch, seq, heads, head_dim), with the module's prefix in front of its keys.

    Args:
        query: (batch, heads, seq, head_dim).
        key, value: (batch, kv_heads, keys, head_dim).
        attention_mask: None, or (batch, 1, seq, keys): bool (True attends), integer 0/1, or float (added).
    """
    site = find_prefix_site(module)
    states = site.states(key.dtype) if site is not None else None
    if states is None:
        if site is not None and site.seen is not None:
            site.seen.append((key, value))
        return _core(module, query, key, value, attention_mask, options)
    causal = attention_mask is None and _is_causal(module, options)
    bias = options.get("position_bias")
    led = causal and bias is None and query.shape[2] == key.shape[2] > 1 and not _written_out(options)
    mask = None if led else extended_mask(attention_mask, states.length, query, key.shape[2], causal)
    options = {
        **options,
        "is_causal": led,  # elsewhere the mask alone says what is seen
        "position_bias": None if bias is None else functional.pad(bias, (states.length, 0)),
    }
    if states.factor is not None:
        return _gated(module, query, key, value, mask, options, states)
    batch = query.shape[0]
    key = torch.cat([states.key.expand(batch, -1, -1, -1), key], dim=2)
    value = torch.cat([states.value.expand(batch, -1, -1, -1), value], dim=2)
    return _behind_prefix(module, query, key, value, mask, options, states.length)


def _behind_prefix(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    options: dict[str, Any],
    tokens: int,
) -> tuple[Tensor, Tensor | None]:
    """Compute attention over keys whose first `tokens` are virtual.

    Where it is causal without a mask, the virtual tokens get queries, too: then torch's kernels need no mask, and leave
    out what is not seen.
    """
    if not options["is_causal"]:
        return _core(module, query, key, value, mask, options)
    out, weights = _core(module, functional.pad(query, (0, 0, tokens, 0)), key, value, mask, options)
    return out[:, tokens:], weights


def _gated(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    options: dict[str, Any],
    states: PrefixStates,
) -> tuple[Tensor, Tensor | None]:
    """Compute attention whose prefix is scaled by a factor per query, by sdpa on wider queries, keys and values.

    The further columns of a query hold its scores for the p virtual tokens, gates included; a virtual token's key has a
    one in its own column and zeros elsewhere. Its value is the same unit vector, so that the further columns of
    the output are the virtual tokens' weights.
    """
    assert states.factor is not None
    if _written_out(options):
        return _weighed(module, query, key, value, mask, options, states)
    batch, heads, _, width = query.shape
    tokens, columns = states.length, value.shape[3]
    prefix_key, prefix_value = (
        _per_head(one.expand(batch, -1, -1, -1), heads // key.shape[1]) for one in (states.key, states.value)
    )
    scores = query @ prefix_key.transpose(2, 3) * states.factor.to(query.dtype)
    query = functional.pad(torch.cat([query, scores], -1), (0, _room(width + tokens)))
    scaling = options.get("scaling")
    options = {**options, "scaling": width**-0.5 if scaling is None else scaling}
    key, value = (_behind_units(one, tokens) for one in (key, value))
    wide, weights = _behind_prefix(module, query, key, value, mask, options, tokens)
    out, given, _ = wide.transpose(1, 2).tensor_split((columns, columns + tokens), -1)
    out = out + (given * states.factor.to(given.dtype)) @ prefix_value
    return out.transpose(1, 2).contiguous(), weights


def _behind_units(states: Tensor, tokens: int) -> Tensor:
    """Return (batch, kv_heads, n, d) as (batch, kv_heads, tokens + n, d + tokens and more): zeros in the further
    columns, and in front a unit vector for each virtual token, with its one in a column of its own.
    """
    batch, kv_heads, _, width = states.shape
    room = _room(width + tokens)
    units = functional.pad(torch.eye(tokens, dtype=states.dtype, device=states.device), (width, room))
    return torch.cat([units.expand(batch, kv_heads, -1, -1), functional.pad(states, (0, tokens + room))], 2)


def _room(width: int) -> int:
    """Return the columns that fill a width up to whole vectors, as the kernels of sdpa want it."""
    return -width % 8


def extended_mask(mask: Tensor | None, length: int, query: Tensor, keys: int, is_causal: bool) -> Tensor | None:
    """Return the mask with `length` columns in front that every query sees; None if every query sees everything.

    Args:
        mask: as transformers hands it over; None stands for causal where `is_causal` and the query is longer than one.
        query: (batch, heads, seq, head_dim).
        keys: columns of the mask, or keys where there is none.
    """
    if mask is None:
        if not is_causal or query.shape[2] == 1:
            return None
        # top-left aligned, as sdpa's is_causal: with a static cache the columns behind the query are still empty
        mask = torch.ones(query.shape[2], keys, dtype=torch.bool, device=query.device).tril()[None, None]
    visible = 0.0 if mask.dtype.is_floating_point else 1
    return functional.pad(mask, (length, 0), value=visible)


def _is_causal(module: nn.Module, options: dict[str, Any]) -> bool:
    given = options.get("is_causal")
    return bool(getattr(module, "is_causal", True) if given is None else given)


def _written_out(options: dict[str, Any]) -> bool:
    """Tell whether scores or weights are asked for in a way that sdpa does not know."""
    unknown = ("softcap", _SINKS)
    return any(options.get(name) is not None for name in unknown) or bool(options.get("output_attentions"))


def _core(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, options: dict[str, Any]
) -> tuple[Tensor, Tensor | None]:
    if _written_out(options):
        if mask is None and _is_causal(module, options):
            mask = extended_mask(None, 0, query, key.shape[2], True)
        return _weighed(module, query, key, value, mask, options, None)
    out: tuple[Tensor, Tensor | None] = AttentionInterface()["sdpa"](module, query, key, value, mask, **options)
    return out


def _weighed(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    options: dict[str, Any],
    states: PrefixStates | None,
) -> tuple[Tensor, Tensor]:
    """Compute attention with its weights written out; `states` carries a factor per query (see `PrefixStates`)."""
    batch, heads = query.shape[:2]
    groups = heads // key.shape[1]
    scaling = options.get("scaling")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = query @ _per_head(key, groups).transpose(2, 3)
    length = 0
    if states is not None and states.factor is not None:
        prefix_scores = query @ _per_head(states.key.expand(batch, -1, -1, -1), groups).transpose(2, 3)
        scores = torch.cat([prefix_scores * states.factor.to(scores.dtype), scores], dim=-1)
        length = states.length
    scores = scores * scaling
    softcap = options.get("softcap")
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if options.get("position_bias") is not None:
        scores = scores + options["position_bias"]
    scores = _masked(scores, mask)
    sinks = options.get(_SINKS)
    if sinks is not None:
        scores = torch.cat([scores, sinks.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:3], 1)], dim=-1)
    weights = functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = weights if sinks is None else weights[..., :-1]
    weights = dropout(weights, options.get("dropout", 0.0), module.training)
    out = weights[..., length:] @ _per_head(value, groups)
    if states is not None and states.factor is not None:
        prefix_value = _per_head(states.value.expand(batch, -1, -1, -1), groups)
        out = out + (weights[..., :length] * states.factor.to(weights.dtype)) @ prefix_value
    return out.transpose(1, 2).contiguous(), weights


def _masked(scores: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return scores
    if mask.dtype.is_floating_point:
        return scores + mask
    return scores.masked_fill(~mask.bool(), torch.finfo(scores.dtype).min)


def _per_head(states: Tensor, groups: int) -> Tensor:
    """Repeat (batch, kv_heads, n, d) for the query heads that share a key-value head."""
    return states if groups == 1 else states.repeat_interleave(groups, dim=1)
