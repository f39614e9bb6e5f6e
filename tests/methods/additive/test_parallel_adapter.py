"""Parallel adapters: formula in the model, identity at the start, counts, training, saving."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from peftcli.methods.parallel_adapter import ParallelAdapterParams
from peftcli.models.read_anatomy import read_anatomy
from tests.methods import harness
from tests.tiny import DECODERS, ENCODERS, SEQ2SEQ, tiny_model


@pytest.mark.parametrize("family", [*ENCODERS, *DECODERS, *SEQ2SEQ])
def test_identity_at_the_start_then_everything_trains(family: str) -> None:
    model, anatomy = harness.frozen(family)
    batch = harness.batch_for(model)
    before = model(**batch).logits
    # 16: of a narrow bottleneck every relu may be dead for these few rows
    attachment = harness.attach("parallel_adapter", model, anatomy, placement="both", bottleneck_size=16)
    torch.testing.assert_close(harness.logits_of(attachment, batch), before, atol=1e-6, rtol=1e-6)
    assert harness.train_steps(attachment, batch) == set(attachment.trainable_parameters())
    assert harness.frozen_without_gradient(attachment)
    assert not torch.equal(harness.logits_of(attachment, batch), before)


def _change(part: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return torch.relu(x @ part.down.weight.T + part.down.bias) @ part.up.weight.T + part.up.bias


def test_ffn_placement_in_bart_is_the_official_block() -> None:
    """LN(ffn(x) + 4 up(relu(down(x))) + x), x the attention norm's output (unify, modeling_bart)."""
    attachment = harness.attached("parallel_adapter", "bart", bottleneck_size=4)
    harness.disturb(attachment, 0.05)
    layer = attachment.model.model.encoder.layers[0]
    seen: list[torch.Tensor] = []
    layer.fc1.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    h = torch.randn(2, 5, 32)
    with torch.no_grad():
        out = layer(h, None)
        out = out[0] if isinstance(out, tuple) else out
        x = seen[0]
        branch = nn.functional.linear(nn.functional.gelu(layer.fc1(x)), layer.fc2.weight, layer.fc2.bias)
        change = _change(attachment.placed[0].part, x)
        torch.testing.assert_close(out, layer.final_layer_norm(branch + 4.0 * change + x), atol=1e-5, rtol=1e-5)


def test_attn_placement_in_llama_sees_the_normed_input() -> None:
    attachment = harness.attached("parallel_adapter", "llama", bottleneck_size=4, placement="attn", scaling=2.0)
    layer = attachment.model.model.layers[0]
    batch = harness.batch_for(attachment.model)
    seen: list[torch.Tensor] = []
    layer.input_layernorm.register_forward_hook(lambda _m, _a, out: seen.append(out))
    outs: list[torch.Tensor] = []
    layer.self_attn.register_forward_hook(lambda _m, _a, out: outs.append(out[0]))
    harness.logits_of(attachment, batch)
    harness.disturb(attachment, 0.05)
    harness.logits_of(attachment, batch)
    with torch.no_grad():
        expected = outs[0] + 2.0 * _change(attachment.placed[0].part, seen[1])
    torch.testing.assert_close(outs[1], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("placement", "count"), [("ffn", 4), ("attn", 6), ("both", 10)])
def test_counts_on_the_meta_device(placement: str, count: int) -> None:
    with torch.device("meta"):
        model = tiny_model("bart", "seq2seq_lm")
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    params = {"placement": placement, "bottleneck_size": 6}
    attachment = harness.attach("parallel_adapter", model, read_anatomy(model), **params)
    assert harness.numbers(attachment.trainable_parameters()) == count * (2 * 6 * 32 + 32 + 6)


def test_save_load_and_checkpointing() -> None:
    trained = harness.attached("parallel_adapter", "gpt2", bottleneck_size=4)
    batch = harness.batch_for(trained.model)
    harness.checkpointing(trained.model)
    assert harness.train_steps(trained, batch) == set(trained.trainable_parameters())
    fresh = harness.attached("parallel_adapter", "gpt2", bottleneck_size=4)
    harness.round_trip(trained, fresh)
    assert torch.equal(harness.logits_of(trained, batch), harness.logits_of(fresh, batch))


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama"])
def test_generation_with_a_cache_is_generation_without(family: str) -> None:
    attachment = harness.attached("parallel_adapter", family, placement="both", bottleneck_size=4)
    harness.disturb(attachment, 0.05)
    batch = harness.batch_for(attachment.model, padding="left")
    texts = [
        attachment.model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=6,
            do_sample=False,
            use_cache=use_cache,
        )
        for use_cache in (True, False)
    ]
    assert torch.equal(*texts)


def test_defaults_are_the_paper_s() -> None:
    params = ParallelAdapterParams()
    assert (params.placement, params.non_linearity) == ("ffn", "relu")
    scales = [harness.attached("parallel_adapter", family).placed[0].part.scale for family in ("bart", "llama", "bert")]
    assert scales == [4.0, 4.0, 2.0]  # the official runs', of BART and of RoBERTa
