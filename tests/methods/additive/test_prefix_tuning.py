"""Prefix tuning: formula through every route, parity with HF peft, caches, padding, packing, saving, counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peftcli.methods.prefix_tuning import METHOD, PrefixTuningParams
from peftcli.models.load.meta_model import build_meta
from peftcli.models.read_anatomy import read_anatomy
from peftcli.protocol.attachment import Attachment
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
    assert METHOD.check(anatomy, PrefixTuningParams(num_virtual_tokens=63)) == []
    assert "at most 63" in METHOD.check(anatomy, PrefixTuningParams(num_virtual_tokens=64))[0]
    assert METHOD.check(anatomy, PrefixTuningParams(num_virtual_tokens=64, shift_positions=False)) == []
    assert METHOD.positions_taken(anatomy, PrefixTuningParams(num_virtual_tokens=9)) == 9
    _, encoder = harness.frozen("bert")
    assert METHOD.positions_taken(encoder, PrefixTuningParams(num_virtual_tokens=9)) == 0


def test_a_local_config_is_enough_to_refuse_too_many() -> None:
    decoder, encoder = ({"model_type": kind, "max_position_embeddings": 64} for kind in ("gpt2", "bert"))
    many = PrefixTuningParams(num_virtual_tokens=64)
    assert "at most 63" in METHOD.check_config(decoder, many)[0]
    assert METHOD.check_config(encoder, many) == []
    assert METHOD.check_config(decoder, PrefixTuningParams(num_virtual_tokens=63)) == []


def test_the_network_learns_at_its_own_rate() -> None:
    ratios = prefixed("llama", projection_lr_ratio=0.25).learning_rate_ratios()
    assert set(ratios) == set(prefixed("llama").trainable_parameters())
    assert set(ratios.values()) == {0.25}
    assert prefixed("llama", prefix_projection=False).learning_rate_ratios() == {}
    assert prefixed("llama", projection_lr_ratio=1.0).learning_rate_ratios() == {}


def test_positions_go_on_behind_a_cache_without_a_mask() -> None:
    """transformers 5.24 renamed the argument that holds the cache."""
    from transformers import DynamicCache

    attachment = prefixed("gpt2")
    model = attachment.model.eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        whole = model(input_ids=ids, use_cache=False).logits
        cache = DynamicCache()
        first = model(input_ids=ids[:, :3], past_key_values=cache).logits
        last = model(input_ids=ids[:, 3:], past_key_values=cache).logits
    torch.testing.assert_close(torch.cat([first, last], dim=1), whole, atol=1e-5, rtol=1e-5)


def test_a_model_with_blocks_without_attention_is_refused_from_its_structure() -> None:
    from transformers import Qwen3_5TextConfig

    config = Qwen3_5TextConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, linear_num_value_heads=2, linear_num_key_heads=2, linear_key_head_dim=8,
        linear_value_head_dim=8, linear_conv_kernel_dim=2, layer_types=["linear_attention"] * 3 + ["full_attention"],
    )  # fmt: skip
    anatomy = read_anatomy(build_meta(config, "causal_lm"))
    assert len(anatomy.without_attention) == 3
    reasons = METHOD.check(anatomy, PrefixTuningParams())
    assert "3 of this model's 4 blocks have no attention" in reasons[0]
