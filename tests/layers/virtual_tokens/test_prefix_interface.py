"""The registered attention function against a loop over queries and keys, for every kind of mask it may receive."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peftcli.layers.virtual_tokens.prefix import Prefix, PrefixShape, prefix_site
from peftcli.layers.virtual_tokens.prefix_interface import prefix_attention, register

HEADS, KV, DIM, SEQ, PREFIX = 4, 2, 8, 5, 3


class _Attention(nn.Module):
    def __init__(self, is_causal: bool) -> None:
        super().__init__()
        self.is_causal = is_causal
        self.num_key_value_groups = HEADS // KV
        site = prefix_site(self)
        self.part = Prefix(PrefixShape(1, KV, DIM, PREFIX, 16))
        site.parts.append(self.part)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states


def _reference(
    module: _Attention,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    allowed: Tensor,
    *,
    scaling: float,
    bias: Tensor | None = None,
    softcap: float | None = None,
    gate: Tensor | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """One query at a time, in float64; `allowed`: (batch, seq, keys); the prefix is always allowed."""
    pk, pv = module.part.states()
    out = torch.zeros(q.shape[0], q.shape[2], HEADS, DIM, dtype=torch.float64)
    for b in range(q.shape[0]):
        for t in range(q.shape[2]):
            for h in range(HEADS):
                g = 1.0 if gate is None else float(gate[b, t])
                scores, values = [], []
                for p in range(PREFIX):
                    scores.append(float(q[b, h, t] @ (g * pk[0, h // 2, p])) * scaling)
                    values.append(g * pv[0, h // 2, p].double())
                for s in range(k.shape[2]):
                    if allowed[b, t, s]:
                        scores.append(float(q[b, h, t] @ k[b, h // 2, s]) * scaling)
                        values.append(v[b, h // 2, s].double())
                if softcap is not None:
                    scores = [softcap * math.tanh(score / softcap) for score in scores]
                if bias is not None:
                    columns = [s for s in range(k.shape[2]) if allowed[b, t, s]]
                    scores = scores[:PREFIX] + [
                        x + float(bias[0, h, t, s]) for x, s in zip(scores[PREFIX:], columns, strict=True)
                    ]
                if sinks is not None:
                    scores.append(float(sinks[h]))
                    values.append(torch.zeros(DIM, dtype=torch.float64))
                top = max(scores)
                weights = [math.exp(score - top) for score in scores]
                out[b, t, h] = sum(w / sum(weights) * value for w, value in zip(weights, values, strict=True))
    return out


def _inputs(keys: int = SEQ, seq: int = SEQ) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(2, HEADS, seq, DIM), torch.randn(2, KV, keys, DIM), torch.randn(2, KV, keys, DIM)


def _check(module: _Attention, qkv: tuple[Tensor, ...], mask: Tensor | None, allowed: Tensor, **options: Any) -> None:
    reference_options = {
        "bias": options.get("position_bias"),
        "softcap": options.get("softcap"),
        "gate": options.pop("gate", None),
        "sinks": options.get("s_aux"),
    }
    with torch.no_grad():
        out, _ = prefix_attention(module, *qkv, mask, scaling=DIM**-0.5, dropout=0.0, **options)
        expected = _reference(module, *qkv, allowed, scaling=DIM**-0.5, **reference_options)
    torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=1e-5)


CAUSAL = torch.ones(SEQ, SEQ, dtype=torch.bool).tril().expand(2, -1, -1)
PADDED = CAUSAL.clone()
PADDED[1, :, :2] = False  # left padding: the first two queries of row 1 see only the prefix


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_no_mask_means_causal_in_a_decoder(softcap: float | None) -> None:
    _check(_Attention(True), _inputs(), None, CAUSAL, softcap=softcap)


def test_no_mask_means_everything_in_an_encoder_and_at_a_decode_step() -> None:
    _check(_Attention(False), _inputs(), None, torch.ones_like(CAUSAL))
    _check(_Attention(True), _inputs(keys=7, seq=1), None, torch.ones(2, 1, 7, dtype=torch.bool))


def test_the_keyword_overrules_the_module() -> None:
    _check(_Attention(True), _inputs(), None, torch.ones_like(CAUSAL), is_causal=False)


def test_an_empty_static_cache_is_longer_than_the_query() -> None:
    allowed = torch.zeros(2, SEQ, SEQ + 4, dtype=torch.bool)
    allowed[:, :, :SEQ] = CAUSAL
    _check(_Attention(True), _inputs(keys=SEQ + 4), None, allowed)


@pytest.mark.parametrize("kind", ["bool", "float", "integer"])
def test_each_kind_of_mask_gets_visible_columns(kind: str) -> None:
    mask: Tensor = PADDED[:, None]
    if kind == "float":
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    if kind == "integer":
        mask = mask.long()
    softcap = 50.0 if kind == "integer" else None  # sdpa itself takes no integer masks
    _check(_Attention(True), _inputs(), mask, PADDED, softcap=softcap)


def test_position_bias_is_zero_at_the_prefix() -> None:
    _check(_Attention(False), _inputs(), None, torch.ones_like(CAUSAL), position_bias=torch.randn(1, HEADS, SEQ, SEQ))
    _check(_Attention(True), _inputs(), PADDED[:, None], PADDED, position_bias=torch.randn(1, HEADS, SEQ, SEQ))


def test_sinks_take_their_share_of_the_weights() -> None:
    """sdpa leaves them out without a word."""
    _check(_Attention(True), _inputs(), PADDED[:, None], PADDED, s_aux=torch.randn(HEADS))
    _check(_Attention(True), _inputs(), None, CAUSAL, s_aux=torch.randn(HEADS))


class _Gate(nn.Module):
    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = values

    def forward(self, x: Tensor) -> Tensor:
        return self.values


@pytest.mark.parametrize("per_position", [True, False])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("padded", [True, False])
def test_a_gate_scales_keys_and_values_of_the_prefix(per_position: bool, softcap: float | None, padded: bool) -> None:
    module = _Attention(True)
    gate = torch.rand(2, SEQ if per_position else 1, 1)
    module.part.scale = _Gate(gate)
    module(torch.randn(2, SEQ, 16))  # the site notes the attention's input
    mask, allowed = (PADDED[:, None], PADDED) if padded else (None, CAUSAL)
    for sinks in (None, torch.randn(HEADS)):
        gates = gate[..., 0].expand(2, SEQ)
        _check(module, _inputs(), mask, allowed, softcap=softcap, gate=gates, s_aux=sinks)


def test_disabled_prefixes_and_attentions_without_one_are_the_library_s_own() -> None:
    module = _Attention(True)
    module.part.enabled = False
    q, k, v = _inputs()
    out, _ = prefix_attention(module, q, k, v, None, scaling=DIM**-0.5)
    k2, v2 = (t.repeat_interleave(2, 1) for t in (k, v))
    expected = nn.functional.scaled_dot_product_attention(q, k2, v2, is_causal=True).transpose(1, 2)
    torch.testing.assert_close(out, expected)


def test_the_name_holds_no_word_that_transformers_interprets() -> None:
    names = {register(before) for before in ("sdpa", "eager", "flash_attention_2")}
    assert not any(word in name for name in names for word in ("sdpa", "flash", "flex", "paged|"))
    assert len(names) == 2 and all(register(name) == name for name in names)
