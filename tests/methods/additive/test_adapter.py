"""Serial adapters: placement, formula in the model, counts, training, saving."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from peftcli.methods.adapter import METHOD, AdapterParams
from peftcli.models.read_anatomy import read_anatomy
from tests.methods import harness
from tests.tiny import DECODERS, ENCODERS, SEQ2SEQ, tiny_model

TEXT = [*ENCODERS, *DECODERS, *SEQ2SEQ]


@pytest.mark.parametrize("family", TEXT)
@pytest.mark.parametrize("placement", ["houlsby", "pfeiffer"])
def test_every_adapter_trains_and_nothing_else(family: str, placement: str) -> None:
    attachment = harness.attached("adapter", family, placement=placement, bottleneck_size=4)
    batch = harness.batch_for(attachment.model)
    moved = harness.train_steps(attachment, batch)
    assert moved == set(attachment.trainable_parameters())
    assert harness.frozen_without_gradient(attachment)


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "t5", "bart", "gpt_neox", "opt", "gemma2"])
def test_fresh_houlsby_adapters_are_near_the_identity(family: str) -> None:
    model, anatomy = harness.frozen(family)
    batch = harness.batch_for(model)
    before = model(**batch).logits
    attachment = harness.attach("adapter", model, anatomy, bottleneck_size=8)
    torch.testing.assert_close(harness.logits_of(attachment, batch), before, atol=2e-4, rtol=1e-3)
    harness.disturb(attachment)
    assert float((harness.logits_of(attachment, batch) - before).abs().max()) > 1e-2


def _adapted(part: nn.Module, h: torch.Tensor, act: str) -> torch.Tensor:
    hidden = getattr(nn.functional, act)(h @ part.down.weight.T + part.down.bias)
    return hidden @ part.up.weight.T + part.up.bias


def test_houlsby_in_bert_is_the_official_block() -> None:
    """x = LN(adapter(dense(x)) + residual), twice per layer (adapter-bert modeling.py), for the whole first layer."""
    attachment = harness.attached("adapter", "bert", bottleneck_size=4)
    harness.disturb(attachment, 0.05)
    model = attachment.model
    layer = model.bert.encoder.layer[0]
    h = torch.randn(2, 5, 32)
    attn, ffn = attachment.placed[0].part, attachment.placed[1].part
    with torch.no_grad():
        context = layer.attention.self(h)[0]
        dense = nn.functional.linear(context, layer.attention.output.dense.weight, layer.attention.output.dense.bias)
        middle = layer.attention.output.LayerNorm(dense + _adapted(attn, dense, "gelu") + h)
        up = nn.functional.gelu(layer.intermediate.dense(middle))
        down = nn.functional.linear(up, layer.output.dense.weight, layer.output.dense.bias)
        expected = layer.output.LayerNorm(down + _adapted(ffn, down, "gelu") + middle)
        out = layer(h)
    torch.testing.assert_close(out[0] if isinstance(out, tuple) else out, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("norm_before", [True, False])
def test_pfeiffer_in_bert_goes_around_the_norm(norm_before: bool) -> None:
    """LN(z + up(relu(down(LN(z))))), z = branch + residual, as AdapterHub's seq_bn."""
    attachment = harness.attached("adapter", "bert", placement="pfeiffer", bottleneck_size=4, norm_before=norm_before)
    harness.disturb(attachment, 0.05)
    layer = attachment.model.bert.encoder.layer[0]
    part = attachment.placed[0].part
    branch, residual = torch.randn(2, 5, 48), torch.randn(2, 5, 32)
    norm = layer.output.LayerNorm
    with torch.no_grad():
        z = nn.functional.linear(branch, layer.output.dense.weight, layer.output.dense.bias) + residual
        seen = nn.functional.layer_norm(z, (32,), norm.weight, norm.bias, norm.eps) if norm_before else z
        z = z + _adapted(part, seen, "relu")
        expected = nn.functional.layer_norm(z, (32,), norm.weight, norm.bias, norm.eps)
        torch.testing.assert_close(layer.output(branch, residual), expected, atol=1e-5, rtol=1e-5)


def test_pfeiffer_in_a_pre_norm_model_ends_the_branch() -> None:
    attachment = harness.attached("adapter", "llama", placement="pfeiffer", bottleneck_size=4)
    harness.disturb(attachment, 0.05)
    mlp = attachment.model.model.layers[0].mlp
    part = attachment.placed[0].part
    x = torch.randn(2, 5, 32)
    with torch.no_grad():
        hidden = nn.functional.silu(mlp.gate_proj(x)) * mlp.up_proj(x)
        branch = nn.functional.linear(hidden, mlp.down_proj.weight)
        torch.testing.assert_close(mlp(x), branch + _adapted(part, branch, "relu"), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("placement", "per_layer"), [("houlsby", 2), ("pfeiffer", 1)])
def test_counts_on_the_meta_device(placement: str, per_layer: int) -> None:
    """2md + d + m for each adapter; Houlsby adds every LayerNorm, the embeddings' included."""
    with torch.device("meta"):
        model = tiny_model("bert", "sequence_classification")
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    attachment = harness.attach("adapter", model, read_anatomy(model), placement=placement, bottleneck_size=5)
    norms = (2 * 2 + 1) * 2 * 32 if placement == "houlsby" else 0
    adapters = 2 * per_layer * (2 * 5 * 32 + 32 + 5)
    assert harness.numbers(attachment.trainable_parameters()) == adapters + norms
    assert harness.numbers(attachment.adapter_tensors()) == adapters + norms
    assert all(p.is_meta for p in attachment.trainable_parameters().values())


def test_save_and_load_give_the_same_logits() -> None:
    trained = harness.attached("adapter", "bart", bottleneck_size=4)
    batch = harness.batch_for(trained.model)
    harness.train_steps(trained, batch)
    fresh = harness.attached("adapter", "bart", bottleneck_size=4)
    harness.round_trip(trained, fresh)
    assert torch.equal(harness.logits_of(trained, batch), harness.logits_of(fresh, batch))


@pytest.mark.parametrize("family", ["bert", "llama", "t5"])
def test_checkpointing_gives_the_same_gradients(family: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        attachment = harness.attached("adapter", family, placement="pfeiffer", bottleneck_size=4)
        harness.disturb(attachment, 0.05)
        if checkpointing:
            harness.checkpointing(attachment.model)
        attachment.model.train()
        harness.loss_of(attachment, harness.batch_for(attachment.model)).backward()
        gradients.append({name: p.grad.clone() for name, p in attachment.trainable_parameters().items()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=lambda text, n=name: f"{n}: {text}")


def test_detach_restores_the_base() -> None:
    model, anatomy = harness.frozen("bert")
    batch = harness.batch_for(model)
    before = model(**batch).logits
    attachment = harness.attach("adapter", model, anatomy, placement="pfeiffer", bottleneck_size=4)
    harness.disturb(attachment)
    attachment.detach()
    assert torch.equal(model(**batch).logits, before)


def test_defaults_follow_the_placement() -> None:
    assert AdapterParams().size_for(768, 16) == 48
    attachment = harness.attached("adapter", "bert", placement="pfeiffer")
    assert attachment.unfrozen == []
    assert harness.attached("adapter", "bert", placement="pfeiffer", train_layer_norm=True).unfrozen != []
    assert METHOD.why_not_mergeable(AdapterParams()) is not None


def test_two_sizes_or_a_bottleneck_that_is_none_are_refused() -> None:
    with pytest.raises(ValueError, match="give one of them"):
        AdapterParams(bottleneck_size=4, reduction_factor=2.0)
    _, anatomy = harness.frozen("bert")
    assert "use at most 128" in METHOD.check(anatomy, AdapterParams(bottleneck_size=129))[0]
