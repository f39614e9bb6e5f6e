"""(IA)3 against its formula and HF peft."""

from __future__ import annotations

import pytest
import torch

from peftcli.errors import UserError
from peftcli.methods.ia3 import IA3Params
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

BERT_DOWN = ["layer.0.output.dense", "layer.1.output.dense"]


def test_the_output_is_the_formula() -> None:
    attachment = attached("ia3", "bert")
    disturb(attachment)
    plain = tiny_model("bert", "sequence_classification")
    with torch.no_grad():
        for placed in attachment.placed:
            vector = placed.part.ia3_l
            weight = plain.get_parameter(f"{placed.key}.weight")
            if placed.key.endswith("output.dense"):
                assert vector.shape == (1, 48)
                weight.mul_(vector)  # W (l * x)
            else:
                assert vector.shape == (32, 1)
                weight.mul_(vector)  # l * (W x + b)
                plain.get_parameter(f"{placed.key}.bias").mul_(vector[:, 0])
        batch = batch_for(plain)
        torch.testing.assert_close(logits_of(attachment, batch), plain(**batch).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "t5", "mixtral", "gpt_neox"])
def test_identity_gradients_and_round_trip(family: str) -> None:
    attachment = attached("ia3", family)
    batch = batch_for(attachment.model)
    plain, _ = frozen(family)
    with torch.no_grad():
        assert torch.equal(logits_of(attachment, batch), plain(**batch).logits)
    assert train_steps(attachment, batch) == set(attachment.trainable_parameters())
    assert frozen_without_gradient(attachment)
    fresh = attached("ia3", family)
    round_trip(attachment, fresh)
    assert torch.equal(logits_of(fresh, batch), logits_of(attachment, batch))


def test_the_default_places_are_the_papers() -> None:
    keys = [placed.key for placed in attached("ia3", "t5").placed]
    per_block = {"SelfAttention.k": 4, "SelfAttention.v": 4, "EncDecAttention.k": 2, "EncDecAttention.v": 2, ".wo": 4}
    assert {ending: sum(key.endswith(ending) for key in keys) for ending in per_block} == per_block
    assert len(keys) == sum(per_block.values())
    fused = [placed.key for placed in attached("ia3", "gpt2").placed]
    assert fused[:2] == ["transformer.h.0.attn.c_attn.k", "transformer.h.0.attn.c_attn.v"]


def test_counts() -> None:
    with torch.device("meta"):
        model = tiny_model("llama")
    attachment = apply_method(model, read_anatomy(model), IA3Params())
    assert numbers(attachment.trainable_parameters()) == attachment.saved_size() == 2 * (16 + 16 + 48)


def test_a_gate_scales_the_change() -> None:
    attachment = attached("ia3", "llama")
    disturb(attachment)
    batch = batch_for(attachment.model)
    for placed in attachment.placed:
        placed.part.scale = 0.0
    with torch.no_grad():
        torch.testing.assert_close(logits_of(attachment, batch), tiny_model("llama")(**batch).logits)


def test_what_it_cannot_change_is_refused() -> None:
    with pytest.raises(UserError, match="is an embedding table"):
        apply_method(*frozen("llama"), IA3Params(target_modules=["embeddings"]))


@pytest.mark.parametrize(
    ("family", "ours", "theirs", "inner"),
    [
        ("llama", None, ["k_proj", "v_proj", "down_proj"], ["down_proj"]),
        # "output.dense" alone would match the attention's output too
        ("bert", None, ["key", "value", *BERT_DOWN], BERT_DOWN),
        ("gpt2", ["c_attn", "mlp.c_proj"], ["c_attn", "mlp.c_proj"], ["mlp.c_proj"]),
        ("t5", None, ["k", "v", "wo"], ["wo"]),
    ],
)
def test_the_same_as_hf_peft(family: str, ours: list[str] | None, theirs: list[str], inner: list[str]) -> None:
    from peft import IA3Config, get_peft_model

    attachment = attached("ia3", family, target_modules=ours)
    disturb(attachment)
    config = IA3Config(target_modules=theirs, feedforward_modules=inner, fan_in_fan_out=family == "gpt2")
    plain, _ = frozen(family)
    other = get_peft_model(plain, config).eval()
    layers = {name for name, module in other.base_model.model.named_modules() if hasattr(module, "ia3_l")}
    assert layers == {placed.key for placed in attachment.placed}
    with torch.no_grad():
        for key, value in attachment.state_dict().items():
            module = key.removesuffix(".ia3_l")
            other.base_model.model.get_submodule(module).ia3_l["default"].copy_(value)
        batch = batch_for(attachment.model)
        torch.testing.assert_close(logits_of(attachment, batch), other(**batch).logits, atol=1e-5, rtol=1e-5)
