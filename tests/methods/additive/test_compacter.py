"""Compacter: placement, counts, the shared rule, training, saving, refusals."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from peftcli.methods.compacter import METHOD, CompacterParams
from peftcli.models.read_anatomy import read_anatomy
from tests.methods import harness
from tests.tiny import DECODERS, ENCODERS, SEQ2SEQ


@pytest.mark.parametrize("family", [*ENCODERS, *DECODERS, *SEQ2SEQ])
def test_identity_at_the_start_then_everything_trains(family: str) -> None:
    model, anatomy = harness.frozen(family)
    batch = harness.batch_for(model)
    before = model(**batch).logits
    attachment = harness.attach("compacter", model, anatomy)
    torch.testing.assert_close(harness.logits_of(attachment, batch), before, atol=1e-5, rtol=1e-5)
    assert harness.train_steps(attachment, batch) == set(attachment.trainable_parameters())
    assert harness.frozen_without_gradient(attachment)


def _linear(layer: nn.Module, rule: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    weight = sum(torch.kron(rule[i], layer.s[i] @ layer.t[i]) for i in range(rule.shape[0]))
    return x @ weight + layer.bias


@pytest.mark.parametrize("branch", ["attn", "ffn"])
def test_t5_branch_is_the_official_one(branch: str) -> None:
    attachment = harness.attached("compacter", "t5", bottleneck_size=8)
    harness.disturb(attachment, 0.2)
    host = attachment.model.get_submodule(
        "encoder.block.0.layer.0.SelfAttention.o" if branch == "attn" else "encoder.block.0.layer.1.DenseReluDense.wo"
    )
    part = attachment.placed[0 if branch == "attn" else 1].part
    rule = attachment.shared["compacter.phm_rule"]
    x = torch.randn(2, 5, host.in_features)
    with torch.no_grad():
        z = nn.functional.linear(x, host.weight)
        hidden = _linear(part.down, rule, z)
        hidden = 0.5 * hidden * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (hidden + 0.044715 * hidden**3)))
        torch.testing.assert_close(host(x), z + _linear(part.up, rule, hidden), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("placement", "count"), [("both", 114_112), ("ffn", 57_088)])
def test_t5_base_counts_are_the_published_ones(placement: str, count: int) -> None:
    """T5-base, reduction 32 (m = 24): the counts of methods.md section 7, and 62 norms of 768."""
    config = AutoConfig.for_model(
        "t5", d_model=768, d_ff=3072, num_layers=12, num_decoder_layers=12, num_heads=12, vocab_size=64
    )
    with torch.device("meta"):
        model = AutoModelForSeq2SeqLM.from_config(config)
    model.requires_grad_(False)
    anatomy = read_anatomy(model)
    attachment = harness.attach("compacter", model, anatomy, placement=placement, train_layer_norm=False)
    assert harness.numbers(attachment.trainable_parameters()) == count
    assert harness.numbers(attachment.adapter_tensors()) == count
    attachment = harness.attach("compacter", model, anatomy, placement=placement)
    assert harness.numbers(attachment.trainable_parameters()) == count + 62 * 768


def test_one_rule_for_all_layers_and_both_projections() -> None:
    attachment = harness.attached("compacter", "t5")
    rule = attachment.shared["compacter.phm_rule"]
    for placed in attachment.placed:
        assert placed.part.down._rule[0].rule is rule
        assert placed.part.up._rule[0].rule is rule
    names = [name for name, p in attachment.model.named_parameters(remove_duplicate=False) if p is rule]
    assert len(names) == 1
    assert not any("EncDecAttention" in placed.key for placed in attachment.placed)


def test_save_load_and_checkpointing() -> None:
    trained = harness.attached("compacter", "t5")
    batch = harness.batch_for(trained.model)
    harness.checkpointing(trained.model)
    assert harness.train_steps(trained, batch) == set(trained.trainable_parameters())
    fresh = harness.attached("compacter", "t5")
    harness.round_trip(trained, fresh)
    assert torch.equal(harness.logits_of(trained, batch), harness.logits_of(fresh, batch))


def test_a_bottleneck_that_phm_dim_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="not a multiple of phm_dim = 4; use 4 or 8"):
        CompacterParams(bottleneck_size=6)
    _, anatomy = harness.frozen("bert")
    assert "does not divide the hidden size 32; use 4" in METHOD.check(anatomy, CompacterParams(phm_dim=5))[0]
    assert METHOD.check(anatomy, CompacterParams()) == []  # 32 / 32 = 1 is rounded to phm_dim


def test_a_local_config_is_enough_to_refuse_a_phm_dim() -> None:
    assert METHOD.check_config({"model_type": "bert", "hidden_size": 32}, CompacterParams(phm_dim=8)) == []
    reasons = METHOD.check_config({"model_type": "bert", "hidden_size": 36}, CompacterParams(phm_dim=8))
    assert reasons == ["phm_dim = 8 does not divide the hidden size 36; use 6"]
