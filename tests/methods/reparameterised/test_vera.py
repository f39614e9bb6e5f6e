"""VeRA against its formula and HF peft, and what is counted and saved."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from peftcli.errors import UserError
from peftcli.layers.parts.vera import random_projections
from peftcli.methods.vera import VeraParams
from peftcli.models.read_anatomy import read_anatomy
from peftcli.protocol.apply_method import apply_method
from tests.methods.harness import (
    attached,
    batch_for,
    disturb,
    frozen,
    frozen_without_gradient,
    logits_of,
    numbers,
    round_trip,
    train_steps,
)
from tests.tiny import tiny_model


def test_the_output_is_the_formula() -> None:
    attachment = attached("vera", "llama", r=16, projection_prng_key=5, target_modules=["attn.q", "attn.v", "ffn.down"])
    disturb(attachment)
    a, b = random_projections(16, 48, 32, 5)  # the largest input is the feed-forward's
    plain = tiny_model("llama")
    with torch.no_grad():
        for placed in attachment.placed:
            weight = plain.get_parameter(f"{placed.key}.weight")
            state = dict(placed.part.named_parameters())
            rows, columns = weight.shape
            delta = torch.diag(state["vera_lambda_b"]) @ b[:rows] @ torch.diag(state["vera_lambda_d"]) @ a[:, :columns]
            weight.add_(delta)
        batch = batch_for(plain)
        torch.testing.assert_close(logits_of(attachment, batch), plain(**batch).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "t5"])
def test_identity_gradients_and_round_trip(family: str) -> None:
    attachment = attached("vera", family, r=32)
    batch = batch_for(attachment.model)
    plain, _ = frozen(family)
    with torch.no_grad():
        torch.testing.assert_close(logits_of(attachment, batch), plain(**batch).logits)
    assert train_steps(attachment, batch) == set(attachment.trainable_parameters())
    assert frozen_without_gradient(attachment)
    fresh = attached("vera", family, r=32)
    round_trip(attachment, fresh)
    assert torch.equal(logits_of(fresh, batch), logits_of(attachment, batch))


def test_start_and_shared_projections() -> None:
    attachment = attached("vera", "llama", r=8, d_initial=0.3)
    parts = [placed.part for placed in attachment.placed]
    assert all(bool((part.vera_lambda_d == 0.3).all()) and not part.vera_lambda_b.any() for part in parts)
    assert len({part.projections.A.data_ptr() for part in parts}) == 1
    attachment.model.to(torch.float64).to(torch.float32)
    assert len({part.projections.A.data_ptr() for part in parts}) == 1  # one copy after a move, too


def test_the_random_matrices_are_neither_counted_nor_saved() -> None:
    with torch.device("meta"):
        model = tiny_model("llama")
    attachment = apply_method(model, read_anatomy(model), VeraParams(r=256))
    expected = 2 * (2 * 256 + 32 + 16)  # d of each place, b of q and of v
    assert numbers(attachment.trainable_parameters()) == attachment.saved_size() == expected
    names = {key.rsplit(".", 1)[-1] for key in attachment.state_dict()}
    assert names == {"vera_lambda_b", "vera_lambda_d"}
    assert not any("projections" in name for name in model.state_dict())


def test_another_seed_gives_another_adapter() -> None:
    outputs = []
    for seed in (0, 0, 1):
        attachment = attached("vera", "llama", r=8, projection_prng_key=seed)
        disturb(attachment)
        outputs.append(logits_of(attachment, batch_for(attachment.model)))
    assert torch.equal(outputs[0], outputs[1]) and not torch.allclose(outputs[0], outputs[2], atol=1e-3)


def test_embeddings_are_no_place_for_it() -> None:
    with pytest.raises(UserError, match=r"vera changes projections; model\.embed_tokens is an embedding table"):
        apply_method(*frozen("llama"), VeraParams(target_modules=["embeddings"]))


@pytest.mark.parametrize(
    ("family", "ours", "theirs"),
    [
        ("llama", ["attn.q", "attn.v"], ["q_proj", "v_proj"]),
        ("llama", "all-linear", "all-linear"),
        ("gpt2", ["c_attn"], ["c_attn"]),
    ],
)
def test_the_same_as_hf_peft(family: str, ours: Any, theirs: Any) -> None:
    from peft import VeraConfig, get_peft_model

    attachment = attached("vera", family, r=16, projection_prng_key=3, target_modules=ours)
    disturb(attachment)
    config = VeraConfig(r=16, projection_prng_key=3, target_modules=theirs, task_type="CAUSAL_LM")
    config.fan_in_fan_out = family == "gpt2"
    other = get_peft_model(tiny_model(family), config).eval()
    with torch.no_grad():
        for key, value in attachment.state_dict().items():
            module, _, name = key.rpartition(".")
            getattr(other.base_model.model.get_submodule(module), name)["default"].copy_(value)
        batch = batch_for(attachment.model)
        torch.testing.assert_close(logits_of(attachment, batch), other(**batch).logits, atol=1e-5, rtol=1e-5)
