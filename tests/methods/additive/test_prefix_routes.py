"""Prefix tuning: the formula of every route, written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from peftcli.analysis.contract_models import bare, batch_of, live
from peftcli.analysis.support.tiny_types import tiny_type
from peftcli.errors import UserError
from peftcli.methods.prefix_tuning import PrefixTuningParams
from peftcli.models.read_anatomy import read_anatomy
from peftcli.protocol.apply_method import apply_method
from tests.methods import harness
from tests.methods.additive.test_prefix_tuning import P, loud, prefixed
from tests.tiny import tiny_model


def _attend(q: Tensor, k: Tensor, v: Tensor, part: Any, scores: Any, depth: int = 0) -> Tensor:
    """Softmax over prefix and own keys; `scores` maps raw own scores to final ones. q, k, v: (B, H, S, D)."""
    pk, pv = (t[depth][None].expand(q.shape[0], -1, -1, -1) for t in part.states())
    raw = q @ k.transpose(-1, -2)
    weights = torch.cat([scores(q @ pk.transpose(-1, -2), True), scores(raw, False)], dim=-1).softmax(-1)
    out = weights[..., :P] @ pv + weights[..., P:] @ v
    return out.transpose(1, 2).flatten(2)


def _split(x: Tensor, heads: int = 4) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def test_bert_self_attention_with_padding() -> None:
    attachment = prefixed("bert")
    module = attachment.model.bert.encoder.layer[0].attention.self
    h = torch.randn(2, 6, 32)
    allowed = torch.ones(2, 1, 1, 6, dtype=torch.bool)
    allowed[1, ..., 4:] = False

    def scores(raw: Tensor, prefix: bool) -> Tensor:
        return raw / 8**0.5 if prefix else (raw / 8**0.5).masked_fill(~allowed, -1e30)

    with torch.no_grad():
        q, k, v = (_split(f(h)) for f in (module.query, module.key, module.value))
        expected = _attend(q, k, v, attachment.placed[0].part, scores)
        out = module(h, allowed.expand(2, 1, 6, 6))[0]
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("which", ["encoder", "decoder", "cross"])
def test_t5_attentions_have_no_bias_at_the_prefix(which: str) -> None:
    attachment = prefixed("t5")
    parts = {placed.key: placed.part for placed in attachment.placed}
    path = {
        "encoder": "encoder.block.0.layer.0.SelfAttention",
        "decoder": "decoder.block.0.layer.0.SelfAttention",
        "cross": "decoder.block.0.layer.1.EncDecAttention",
    }[which]
    module = attachment.model.get_submodule(path)
    h, other = torch.randn(2, 6, 32), torch.randn(2, 5, 32)
    source = other if which == "cross" else h
    allowed = torch.ones(6, source.shape[1], dtype=torch.bool)
    if which == "decoder":
        allowed = allowed.tril()
    with torch.no_grad():
        bias = 0.0 if which == "cross" else module.compute_bias(6, 6)

        def scores(raw: Tensor, prefix: bool) -> Tensor:
            return raw if prefix else (raw + bias).masked_fill(~allowed, -1e30)

        expected = _attend(
            *(_split(f(x)) for f, x in ((module.q, h), (module.k, source), (module.v, source))),
            parts[f"{path}.prefix"],
            scores,
        )
        states = other if which == "cross" else None
        out = module(
            h, mask=None if which == "cross" else allowed[None, None].expand(2, 1, -1, -1), key_value_states=states
        )[0]
        torch.testing.assert_close(out, module.o(expected), atol=1e-4, rtol=1e-4)


def test_bloom_keeps_its_slopes_and_gives_the_prefix_none() -> None:
    attachment = prefixed("bloom")
    module = attachment.model.transformer.h[0].self_attention
    h = torch.randn(2, 6, 32)
    alibi = torch.randn(2 * 4, 1, 6)
    mask = torch.zeros(2, 1, 6, 6).masked_fill(~torch.ones(6, 6, dtype=torch.bool).tril(), -1e30)
    with torch.no_grad():
        q, k, v = module.query_key_value(h).unflatten(-1, (4, 3, 8)).permute(3, 0, 2, 1, 4)

        def scores(raw: Tensor, prefix: bool) -> Tensor:
            return raw / 8**0.5 if prefix else raw / 8**0.5 + alibi.view(2, 4, 1, 6) + mask

        expected = _attend(q, k, v, attachment.placed[0].part, scores)
        out = module(h, torch.zeros_like(h), alibi=alibi, attention_mask=mask)[0]
        torch.testing.assert_close(out, module.dense(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layer", [0, 1])  # global, local
def test_gpt_neo_prefix_stays_in_sight_of_local_attention(layer: int) -> None:
    attachment = prefixed("gpt_neo", changes={"window_size": 3})
    module = attachment.model.transformer.h[layer].attn.attention
    h = torch.randn(2, 9, 32)
    allowed = torch.ones(9, 9, dtype=torch.bool).tril()
    if layer == 1:
        allowed = allowed ^ torch.ones(9, 9, dtype=torch.bool).tril(-3)
    with torch.no_grad():
        q, k, v = (_split(f(h)) for f in (module.q_proj, module.k_proj, module.v_proj))

        def scores(raw: Tensor, prefix: bool) -> Tensor:
            return raw if prefix else raw.masked_fill(~allowed, -1e30)

        expected = _attend(q, k, v, attachment.placed[layer].part, scores)
        torch.testing.assert_close(module(h)[0], module.out_proj(expected), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "changes", [{}, {"share_att_key": True}, {"relative_attention": False}, {"pos_att_type": ["c2p"]}]
)
def test_deberta_equals_p_more_tokens_with_those_keys_and_values(changes: dict[str, Any]) -> None:
    """The prefix acts as P tokens in front, at their relative positions, whose keys and values are given."""
    attachment = prefixed("deberta-v2", changes=changes)
    other = tiny_model("deberta-v2", "sequence_classification", **changes)
    loud(other)
    part = attachment.placed[0].part
    h = torch.randn(2, 6, 32)
    mask = torch.ones(2, 1, 6, 6, dtype=torch.long)
    mask[1, :, :, 4:] = 0
    longer = torch.ones(2, 1, 6 + P, 6 + P, dtype=torch.long)
    longer[:, :, P:, P:] = mask
    plain = other.deberta.encoder.layer[0].attention.self
    calls = {"key_proj": 0, "value_proj": 0}

    def given(name: str, tensor: Tensor) -> Any:
        rows = tensor[0].transpose(0, 1).flatten(1)

        def hook(_m: nn.Module, _a: Any, out: Tensor) -> Tensor:
            calls[name] += 1
            if calls[name] > 1:
                return out
            out = out.clone()
            out[:, :P] = rows
            return out

        return hook

    key, value = part.states()
    plain.key_proj.register_forward_hook(given("key_proj", key))
    plain.value_proj.register_forward_hook(given("value_proj", value))
    encoder = attachment.model.deberta.encoder
    with torch.no_grad():
        embeddings = encoder.get_rel_embedding()
        expected = plain(torch.cat([torch.randn(2, P, 32), h], 1), longer, rel_embeddings=embeddings)[0][:, P:]
        position = encoder.get_rel_pos(h)
        out = encoder.layer[0].attention.self(h, mask, relative_pos=position, rel_embeddings=embeddings)[0]
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


def test_albert_has_a_prefix_for_every_depth() -> None:
    attachment = prefixed("albert", changes={"num_hidden_layers": 3}, prefix_projection=False)
    (placed,) = attachment.placed
    batch = harness.batch_for(attachment.model)
    before = harness.logits_of(attachment, batch)
    assert torch.equal(harness.logits_of(attachment, batch), before)  # depths count from 0 in every call
    for depth in range(3):
        with torch.no_grad():
            placed.part.value[depth] += 1.0
        after = harness.logits_of(attachment, batch)
        assert not torch.equal(after, before)
        before = after


@pytest.mark.parametrize("family", ["gpt_oss", "granite_swa"])
def test_switched_off_it_is_a_base_whose_attention_has_sinks(family: str) -> None:
    kind = tiny_type(family, "causal_lm")
    found, batch = live(kind, PrefixTuningParams(num_virtual_tokens=P, encoder_hidden_size=8)), batch_of(kind)
    found.attachment.enable(False)
    with torch.no_grad():
        torch.testing.assert_close(found.model.eval()(**batch).logits, bare(kind)(**batch).logits)


def test_an_indexer_whose_choice_would_be_switched_off_is_refused() -> None:
    sizes = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "vocab_size": 64, "head_dim": 16}
    config = AutoConfig.for_model("minimax_m3_vl_text", **sizes, layer_types=["full_attention", "minimax_m3_sparse"])
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(UserError, match=r"layers\.1\.self_attn chooses the keys"):
        apply_method(model, read_anatomy(model), PrefixTuningParams(num_virtual_tokens=P))
