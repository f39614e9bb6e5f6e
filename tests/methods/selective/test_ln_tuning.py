"""LayerNorm tuning: which norms move, what is refused, HF peft's ten steps, and a base in four bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from peftcli.errors import UserError
from peftcli.methods.ln_tuning import METHOD, LNTuningParams
from peftcli.models.read_anatomy import read_anatomy
from peftcli.protocol.apply_method import apply_method
from tests.methods.harness import (
    attach,
    attached,
    batch_for,
    frozen,
    frozen_without_gradient,
    logits_of,
    losses_of_steps,
    train_steps,
)
from tests.tiny import save_tiny, tiny_model

HF_TARGETS = {
    "llama": ["input_layernorm", "post_attention_layernorm", "norm"],
    "gpt2": ["ln_1", "ln_2", "ln_f"],
    "bart": ["self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm"],
    "t5": ["layer_norm", "final_layer_norm"],
}


def test_every_norm_moves_and_nothing_else() -> None:
    attachment = attached("ln_tuning", "bert")
    assert len(attachment.unfrozen) == 2 * (1 + 2 * 2)  # of the embeddings, and two in each block: scale and bias
    batch = batch_for(attachment.model)
    before = logits_of(attachment, batch)
    assert torch.equal(before, logits_of(attached("ln_tuning", "bert"), batch))
    assert train_steps(attachment, batch) == set(attachment.trainable_parameters())
    assert frozen_without_gradient(attachment)
    assert not torch.allclose(before, logits_of(attachment, batch), atol=1e-4)


def test_names_choose_and_leave_out() -> None:
    def norms(**params: Any) -> set[str]:
        return {name.rpartition(".")[0] for name in attached("ln_tuning", "llama", **params).unfrozen}

    assert norms(target_modules=["norm"]) == {"model.norm"}
    assert norms(target_modules=r".*\.0\..*layernorm") == {
        "model.layers.0.input_layernorm",
        "model.layers.0.post_attention_layernorm",
    }
    assert norms(exclude_modules=["norm", "input_layernorm"]) == {
        f"model.layers.{layer}.post_attention_layernorm" for layer in range(2)
    }


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"target_modules": ["input_layernrom"]}, "did you mean input_layernorm"),
        ({"target_modules": ["q_proj"]}, "matches no normalisation layer of this llama model"),
        ({"exclude_modules": ".*norm"}, "leaves no norm"),
    ],
)
def test_what_names_no_norm_is_refused(params: dict[str, Any], message: str) -> None:
    model, anatomy = frozen("llama")
    with pytest.raises(UserError) as caught:
        apply_method(model, anatomy, LNTuningParams(**params))
    assert message in str(caught.value)


@pytest.mark.parametrize("targets", [[], "", [""], "norm("])
def test_targets_that_name_nothing_are_refused(targets: object) -> None:
    with pytest.raises(ValidationError):
        LNTuningParams(target_modules=targets)


@pytest.mark.parametrize("family", HF_TARGETS)
def test_ten_steps_are_hf_pefts(family: str) -> None:
    from peft import LNTuningConfig, get_peft_model

    ours, plain = attached("ln_tuning", family, target_modules=HF_TARGETS[family]), frozen(family)[0]
    theirs = get_peft_model(plain, LNTuningConfig(target_modules=HF_TARGETS[family]))
    trained = {name: p for name, p in theirs.named_parameters() if p.requires_grad}
    assert len(trained) == len(ours.trainable_parameters())
    batch = batch_for(ours.model)
    mine = losses_of_steps(ours.model, ours.trainable_parameters().values(), batch)
    other = losses_of_steps(theirs, trained.values(), batch)
    assert mine == pytest.approx(other, abs=1e-5) and mine[-1] < mine[0] - 0.01


def test_it_trains_on_a_base_in_four_bits(tmp_path: Path) -> None:
    from peftcli.models.load.load_model import load_model
    from peftcli.recipe.schema import ModelSpec

    base = save_tiny(tmp_path, "llama", hidden_size=64, intermediate_size=64)
    model = load_model(ModelSpec(name_or_path=str(base), load_in_4bit=True), "causal_lm").model
    attachment = apply_method(model, read_anatomy(model), LNTuningParams())
    batch = batch_for(model)
    assert train_steps(attachment, batch) == set(attachment.trainable_parameters())
    assert {p.dtype for p in attachment.trainable_parameters().values()} == {torch.float32}


def test_merged_is_live() -> None:
    model, anatomy = frozen("bert")
    attachment = attach("ln_tuning", model, anatomy)
    batch = batch_for(model)
    train_steps(attachment, batch)
    plain = tiny_model("bert", "sequence_classification")
    rules = METHOD.merge_rules(anatomy, LNTuningParams(), attachment.state_dict())
    assert len(rules) == len(attachment.unfrozen)
    with torch.no_grad():
        for name, rule in rules.items():
            parameter = plain.get_parameter(name)
            parameter.copy_(rule.apply(parameter.clone()))
        assert torch.equal(plain.eval()(**batch).logits, logits_of(attachment, batch))
