"""QLoRA is LoRA with other defaults on a 4-bit base: what differs, and that it trains on the real thing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from peftcli.errors import UserError
from peftcli.methods import lora
from peftcli.methods.qlora import METHOD, QLoraParams
from peftcli.models.load.load_model import load_model
from peftcli.models.read_anatomy import read_anatomy
from peftcli.protocol.apply_method import apply_method
from peftcli.protocol.registry import registry
from peftcli.recipe.schema import ModelSpec
from tests.methods.harness import attached, batch_for, frozen_without_gradient, logits_of, train_steps
from tests.tiny import save_tiny


def test_it_is_loras_record_and_parameters_with_other_defaults() -> None:
    assert METHOD.info.forces_4bit and METHOD.info.quantised_base and METHOD.info.learning_rate == 1e-3
    assert registry.info("qlora") is METHOD.info and not lora.METHOD.info.forces_4bit
    assert QLoraParams().target_modules == "all-linear"
    assert set(QLoraParams.model_fields) == set(lora.LoraParams.model_fields)


def test_the_same_places_as_lora_on_all_linears() -> None:
    ours, theirs = attached("qlora", "llama"), attached("lora", "llama", target_modules="all-linear")
    assert {key: tuple(value.shape) for key, value in ours.state_dict().items()} == {
        key: tuple(value.shape) for key, value in theirs.state_dict().items()
    }


@pytest.mark.parametrize(
    ("method", "family"),
    [("qlora", "llama"), ("qlora", "gpt2"), ("adalora", "llama"), ("vera", "llama"), ("ia3", "llama")],
)
def test_trains_on_a_4bit_base(method: str, family: str, tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 128} if family == "llama" else {"n_embd": 64}
    base = save_tiny(tmp_path, family, **sizes)
    model = load_model(ModelSpec(name_or_path=str(base), load_in_4bit=True), "causal_lm").model
    attachment = apply_method(model, read_anatomy(model), registry.info(method).params())
    batch = batch_for(model)
    before = logits_of(attachment, batch)
    assert train_steps(attachment, batch) == set(attachment.trainable_parameters())
    assert frozen_without_gradient(attachment)
    assert not torch.allclose(logits_of(attachment, batch), before, atol=1e-4)
    # an evaluation pass must not cost the gradients of the next step (bitsandbytes repacks weights on some CPUs)
    assert train_steps(attachment, batch) == set(attachment.trainable_parameters())


@pytest.mark.parametrize("width", ["load_in_4bit", "load_in_8bit"])
def test_quantised_modules_are_not_trained_whole(width: str, tmp_path: Path) -> None:
    base = save_tiny(tmp_path, "llama", hidden_size=64, intermediate_size=128)
    model = load_model(ModelSpec(name_or_path=str(base), **{width: True}), "causal_lm").model
    anatomy = read_anatomy(model)
    with pytest.raises(UserError, match=r"layers\.0\.mlp\.gate_proj is quantised"):
        apply_method(model, anatomy, lora.LoraParams(modules_to_save=["mlp"]))
    assert apply_method(model, anatomy, lora.LoraParams(modules_to_save=["embed_tokens"])).to_save
