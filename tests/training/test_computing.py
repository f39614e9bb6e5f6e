"""How a training forward pass computes: the CPU's own attention in bfloat16, and its switch."""

from __future__ import annotations

import pytest
import torch

from peftcli.layers import short_attention as module
from peftcli.training.compute_weights import ComputeWeights, frozen_matrices
from peftcli.training.run import train
from tests.tiny import tiny_model


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    made: list[int] = []
    plain = module.short_attention

    def counted(*args, **kwargs):
        made.append(1)
        return plain(*args, **kwargs)

    monkeypatch.setattr(module, "short_attention", counted)
    return made


def test_bfloat16_takes_short_attention_and_learns_the_same(recipe, recorder, calls) -> None:
    train(recipe(training__bf16=True, name="own"), reporter=recorder)
    own, taken = list(recorder.losses), len(calls)
    recorder.steps.clear()
    train(recipe(training__bf16=True, name="torch", model__attn_implementation="sdpa"), reporter=recorder)
    assert taken and len(calls) == taken
    assert recorder.losses == pytest.approx(own, rel=5e-3)


@pytest.mark.parametrize("change", [{"training__gradient_checkpointing": True}, {}])
def test_not_when_recomputing_nor_in_float32(recipe, recorder, calls, change) -> None:
    train(recipe(training__bf16=bool(change), training__max_steps=1, **change), reporter=recorder)
    assert not calls


def test_copies_are_in_place_and_the_weights_come_back() -> None:
    model = tiny_model("llama").requires_grad_(False)
    before = {name: (value.dtype, value.clone()) for name, value in model.state_dict().items()}
    weights = ComputeWeights(model, torch.bfloat16)
    projection = model.get_submodule("model.layers.0.self_attn.q_proj")
    with weights.in_place():
        assert projection.weight.dtype == torch.bfloat16
        assert model.get_input_embeddings().weight.dtype == torch.float32
        with weights.set_aside():
            assert projection.weight.dtype == torch.float32
        assert projection.weight.dtype == torch.bfloat16
    for name, value in model.state_dict().items():
        assert value.dtype == before[name][0] and torch.equal(value, before[name][1]), name


def test_trained_and_tied_weights_are_left_alone() -> None:
    model = tiny_model("llama").requires_grad_(False)
    model.lm_head.weight = model.get_input_embeddings().weight
    trained = model.get_submodule("model.layers.0.mlp.up_proj").weight.requires_grad_()
    chosen = {id(weight) for weight in frozen_matrices(model)}
    assert chosen and not chosen & {id(trained), id(model.lm_head.weight)}


@pytest.mark.parametrize("method", [{"name": "lora", "use_dora": True}, {"name": "adapter"}])
def test_copies_train_as_autocast_does_and_evaluate_in_float32(recipe, recorder, monkeypatch, method) -> None:
    words = {"training__bf16": True, "method": method, "data__val_set_size": 4, "training__eval_steps": 3}
    with_copies = train(recipe(name="copies", **words), reporter=recorder)
    losses = list(recorder.losses)
    recorder.steps.clear()
    monkeypatch.setattr("peftcli.training.session.ComputeWeights", lambda model, dtype: ComputeWeights(model, None))
    plain = train(recipe(name="plain", **words), reporter=recorder)
    assert losses == pytest.approx(list(recorder.losses), rel=2e-3)
    assert with_copies.eval_before["eval_loss"] == plain.eval_before["eval_loss"]
