"""Prefix tuning: formula through every route, parity with HF peft, caches, padding, packing, saving, counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peftcli.methods.attachment import Attachment
from peftcli.methods.prefix_tuning import PrefixTuningParams, check, check_config, positions_taken
from peftcli.models.reading import read_anatomy
from tests.methods import harness
from tests.tiny import DECODERS, ENCODERS, SEQ2SEQ, tiny_model

P = 4
TEXT = [*ENCODERS, *DECODERS, *SEQ2SEQ]


def loud(model: nn.Module) -> None:
    """Make a tiny model's weights large enough that a wrong key or position changes the logits visibly."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "peft_" not in name:
                parameter.mul_(8.0)


def prefixed(
    family: str, task: str | None = None, *, changes: dict[str, Any] | None = None, **params: Any
) -> Attachment:
    model, anatomy = harness.frozen(family, task, **(changes or {}))
    loud(model)
    return harness.attach(
        "prefix_tuning", model, anatomy, **{"num_virtual_tokens": P, "encoder_hidden_size": 8, **params}
    )


@pytest.mark.parametrize("family", TEXT)
@pytest.mark.parametrize("projection", [True, False])
def test_every_prefix_trains_and_nothing_else(family: str, projection: bool) -> None:
    attachment = harness.attached(
        "prefix_tuning", family, num_virtual_tokens=P, encoder_hidden_size=8, prefix_projection=projection
    )
    batch = harness.batch_for(attachment.model)
    assert harness.train_steps(attachment, batch) == set(attachment.trainable_parameters())
    assert harness.frozen_without_gradient(attachment)


@pytest.mark.parametrize("family", [f for f in TEXT if f != "albert"])  # the library refuses checkpointing for albert
def test_checkpointing_gives_the_same_gradients(family: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        attachment = prefixed(family)
        if checkpointing:
            harness.checkpointing(attachment.model)
        attachment.model.train()
        harness.loss_of(attachment, harness.batch_for(attachment.model)).backward()
        gradients.append({name: p.grad.clone() for name, p in attachment.trainable_parameters().items()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-4, rtol=1e-3)


# ---- the formula, written out per route


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


# ---- against HF peft


def _hf_peft(family: str, attachment: Attachment) -> nn.Module:
    """Return HF peft's prefix tuning on a copy of the base, with the same keys and values."""
    from peft import PrefixTuningConfig, get_peft_model

    base = tiny_model(family)
    loud(base)
    model = get_peft_model(base, PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=P))
    states = [t for placed in attachment.placed for t in placed.part.states()]
    table = torch.stack([t[0].transpose(0, 1) for t in states], dim=1)  # (P, 2 * layers, kv_heads, head_dim)
    with torch.no_grad():
        model.prompt_encoder["default"].embedding.weight.copy_(table.flatten(1))
    return model.eval()


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2", "qwen3", "opt", "phi", "gpt_neox", "phi3"])
def test_equal_to_hf_peft(family: str) -> None:
    attachment = prefixed(family)
    theirs = _hf_peft(family, attachment)
    batch = harness.batch_for(attachment.model, padding="none")
    batch.pop("labels")
    with torch.no_grad():
        expected = theirs(**batch).logits
    torch.testing.assert_close(harness.logits_of(attachment, batch), expected, atol=2e-5, rtol=1e-4)


def test_without_shift_positions_start_at_zero() -> None:
    """The same keys and values with positions moved by hand are HF peft's; unmoved they are not."""
    attachment = prefixed("llama", shift_positions=False)
    theirs = _hf_peft("llama", attachment)
    batch = harness.batch_for(attachment.model, padding="none")
    batch.pop("labels")
    with torch.no_grad():
        expected = theirs(**batch).logits
    moved = {**batch, "position_ids": torch.arange(9)[None] + P}
    torch.testing.assert_close(harness.logits_of(attachment, moved), expected, atol=2e-5, rtol=1e-4)
    assert float((harness.logits_of(attachment, batch) - expected).abs().max()) > 1e-2


# ---- caches, padding, packing


def _generate(attachment: Attachment, batch: dict[str, Tensor], **options: Any) -> Tensor:
    out: Tensor = attachment.model.generate(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        max_new_tokens=12,
        min_new_tokens=12,
        do_sample=False,
        **options,
    )
    return out


@pytest.mark.parametrize("family", [*DECODERS, *SEQ2SEQ])
def test_generation_with_a_cache_is_generation_without(family: str) -> None:
    attachment = prefixed(family)
    batch = harness.batch_for(attachment.model, padding="left" if family in DECODERS else "right")
    cached = _generate(attachment, batch, use_cache=True)
    assert torch.equal(cached, _generate(attachment, batch, use_cache=False))
    if family in DECODERS:
        alone = {key: value[2:3, 2:] for key, value in batch.items()}
        assert torch.equal(_generate(attachment, alone)[0], cached[2, 2:])  # left padding changes nothing


@pytest.mark.parametrize("family", ["llama", "gemma2", "t5", "bloom"])
def test_beams_with_a_cache_are_beams_without(family: str) -> None:
    attachment = prefixed(family)
    batch = harness.batch_for(attachment.model, padding="none")
    with_cache = _generate(attachment, batch, use_cache=True, num_beams=3)
    assert torch.equal(with_cache, _generate(attachment, batch, use_cache=False, num_beams=3))


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gemma3_text"])
def test_static_cache_is_dynamic_cache(family: str) -> None:
    attachment = prefixed(family)
    batch = harness.batch_for(attachment.model, padding="none")
    static = _generate(attachment, batch, cache_implementation="static", disable_compile=True)
    assert torch.equal(static, _generate(attachment, batch))


@pytest.mark.parametrize("family", TEXT)
def test_padding_changes_nothing(family: str) -> None:
    attachment = prefixed(family)
    sides = ["right"] if family in (*ENCODERS, *SEQ2SEQ) else ["right", "left"]
    for side in sides:
        batch = harness.batch_for(attachment.model, padding=side, length=12)
        if family not in SEQ2SEQ:
            batch.pop("labels")
        logits = harness.logits_of(attachment, batch)
        columns = slice(2, None) if side == "left" else slice(0, 10)
        keep = {"input_ids", "attention_mask", "position_ids"}
        alone = {k: v[2:3, columns] if k in keep else v[2:3] for k, v in batch.items()}
        expected = harness.logits_of(attachment, alone)
        padded = logits[2:3, columns] if family in DECODERS else logits[2:3]
        torch.testing.assert_close(padded, expected, atol=2e-3, rtol=1e-3)  # a wrong mask is off by more than 1


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2", "gemma3_text", "qwen3"])
def test_packed_documents_each_see_the_prefix_and_not_each_other(family: str) -> None:
    attachment = prefixed(family)
    ids = harness.batch_for(attachment.model, padding="none")["input_ids"]
    packed = {
        "input_ids": ids[:2].reshape(1, -1),
        "position_ids": torch.arange(9).repeat(2)[None],
        "use_cache": False,
    }
    apart = harness.logits_of(attachment, {"input_ids": ids[:2]})
    torch.testing.assert_close(harness.logits_of(attachment, packed).view(2, 9, -1), apart, atol=1e-4, rtol=1e-4)


def test_bfloat16_base_with_float32_prefix() -> None:
    attachment = harness.attached("prefix_tuning", "llama", num_virtual_tokens=P)
    attachment.model.to(torch.bfloat16)
    for parameter in attachment.trainable_parameters().values():
        parameter.data = parameter.data.float()
    batch = harness.batch_for(attachment.model)
    harness.train_steps(attachment, batch)
    assert {p.dtype for p in attachment.trainable_parameters().values()} == {torch.float32}


# ---- counts, saving, resuming, detaching


def test_counts_on_the_meta_device() -> None:
    """Saved: l * 2 * L * d for each kind of attention (BART: three); trained: the official networks."""
    with torch.device("meta"):
        model = tiny_model("bart", "seq2seq_lm")
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    attachment = harness.attach(
        "prefix_tuning", model, read_anatomy(model), num_virtual_tokens=7, encoder_hidden_size=16
    )
    assert harness.numbers(attachment.adapter_tensors()) == 3 * 7 * 2 * 2 * 32
    network = 7 * 32 + 32 * 16 + 16 + 16 * (2 * 2 * 32) + 2 * 2 * 32
    assert harness.numbers(attachment.trainable_parameters()) == 3 * network
    assert all(t.is_meta for t in attachment.adapter_tensors().values())


def test_grouped_query_attention_counts_its_own_heads() -> None:
    attachment = harness.attached("prefix_tuning", "qwen3", num_virtual_tokens=7, prefix_projection=False)
    assert harness.numbers(attachment.trainable_parameters()) == 7 * 2 * 2 * (2 * 16)


@pytest.mark.parametrize("family", ["bart", "llama", "albert", "deberta-v2"])
def test_save_and_load_give_the_same_logits_without_the_network(family: str) -> None:
    trained = prefixed(family)
    batch = harness.batch_for(trained.model)
    harness.train_steps(trained, batch)
    fresh = prefixed(family)
    harness.round_trip(trained, fresh)
    torch.testing.assert_close(harness.logits_of(fresh, batch), harness.logits_of(trained, batch), atol=1e-5, rtol=1e-5)
    assert all(name.endswith((".prefix.key", ".prefix.value")) for name in fresh.trainable_parameters())
    assert fresh.training_state() == {}


def test_resume_brings_the_network_back() -> None:
    trained = prefixed("llama")
    batch = harness.batch_for(trained.model)
    harness.train_steps(trained, batch)
    state, training = trained.state_dict(), trained.training_state()
    state = {key: tensor.clone() for key, tensor in state.items()}
    fresh = prefixed("llama")
    names = list(fresh.trainable_parameters())
    fresh.load_state_dict(state)
    fresh.load_training_state(training)
    assert list(fresh.trainable_parameters()) == names
    assert torch.equal(harness.logits_of(fresh, batch), harness.logits_of(trained, batch))
    for attachment in (trained, fresh):
        harness.train_steps(attachment, batch)
    assert torch.equal(harness.logits_of(fresh, batch), harness.logits_of(trained, batch))


def test_two_adapters_share_one_base_and_leave_it_as_it_was() -> None:
    model, anatomy = harness.frozen("gpt_neo", window_size=3)
    loud(model)
    batch = harness.batch_for(model)
    base = model(**batch).logits
    first = harness.attach("prefix_tuning", model, anatomy, num_virtual_tokens=P)
    alone = harness.logits_of(first, batch)
    second = harness.attach("prefix_tuning", model, anatomy, num_virtual_tokens=2)
    second.enable(False)
    torch.testing.assert_close(harness.logits_of(first, batch), alone)
    first.detach()
    torch.testing.assert_close(harness.logits_of(second, batch), base)
    second.enable()
    assert float((harness.logits_of(second, batch) - base).abs().max()) > 1e-3


def test_detach_restores_the_attention_implementation() -> None:
    model, anatomy = harness.frozen("llama")
    batch = harness.batch_for(model)
    base = model(**batch).logits
    first = harness.attach("prefix_tuning", model, anatomy, num_virtual_tokens=P)
    second = harness.attach("prefix_tuning", model, anatomy, num_virtual_tokens=P)
    first.detach()
    assert model.config._attn_implementation == "peft_prefix_attention"
    second.detach()
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(model(**batch).logits, base)
    assert not any("prefix" in name for name, _ in model.named_parameters())


def test_dropout_acts_on_the_prefix_while_training() -> None:
    attachment = prefixed("llama", prefix_dropout=0.5)
    part = attachment.placed[0].part
    part.train()
    assert float((part.at(0)[0] == 0).float().mean()) > 0.2
    part.eval()
    assert not (part.at(0)[0] == 0).any()


def test_more_virtual_tokens_than_positions_are_refused_with_the_limit() -> None:
    _, anatomy = harness.frozen("gpt2")
    assert check(anatomy, PrefixTuningParams(num_virtual_tokens=63)) == []
    assert "at most 63" in check(anatomy, PrefixTuningParams(num_virtual_tokens=64))[0]
    assert check(anatomy, PrefixTuningParams(num_virtual_tokens=64, shift_positions=False)) == []
    assert positions_taken(anatomy, PrefixTuningParams(num_virtual_tokens=9)) == 9
    _, encoder = harness.frozen("bert")
    assert positions_taken(encoder, PrefixTuningParams(num_virtual_tokens=9)) == 0


def test_a_local_config_is_enough_to_refuse_too_many() -> None:
    decoder, encoder = ({"model_type": kind, "max_position_embeddings": 64} for kind in ("gpt2", "bert"))
    many = PrefixTuningParams(num_virtual_tokens=64)
    assert "at most 63" in check_config(decoder, many)[0]
    assert check_config(encoder, many) == []
    assert check_config(decoder, PrefixTuningParams(num_virtual_tokens=63)) == []


def test_the_network_learns_at_its_own_rate() -> None:
    ratios = prefixed("llama", projection_lr_ratio=0.25).learning_rate_ratios()
    assert set(ratios) == set(prefixed("llama").trainable_parameters())
    assert set(ratios.values()) == {0.25}
    assert prefixed("llama", prefix_projection=False).learning_rate_ratios() == {}
    assert prefixed("llama", projection_lr_ratio=1.0).learning_rate_ratios() == {}
