"""How a training forward pass computes: the faster paths, and their switches."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

from peftcli.layers.cpu import cpu_attention, cpu_paths
from peftcli.layers.row_draws import DrawnRows
from peftcli.record.random_state import random_numbers_kept, seed_pass
from peftcli.training.run import train
from peftcli.training.speed.compute_weights import ComputeWeights, frozen_projections
from tests.tiny import tiny_model

BY_INSTRUCTIONS = {"wide_products": False}
"""What a processor with instructions for bfloat16 computes; one without emulates it, or computes in float32."""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the paths that were taken, call by call."""
    made: list[str] = []

    def count(module: ModuleType, name: str) -> None:
        original = getattr(module, name)

        def counted(*args: object, **kwargs: object) -> object:
            made.append(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(module, name, counted)

    count(cpu_attention, "cpu_attention")
    count(cpu_paths, "drop")
    return made


def test_bfloat16_takes_short_attention_and_learns_the_same(recipe, recorder, calls) -> None:
    words = {"training__bf16": True, "training__fast_paths": BY_INSTRUCTIONS}
    train(recipe(name="own", **words), reporter=recorder)
    own, taken = list(recorder.losses), len(calls)
    recorder.steps.clear()
    train(recipe(name="torch", model__attn_implementation="sdpa", **words), reporter=recorder)
    assert taken and len(calls) == taken
    assert recorder.losses == pytest.approx(own, rel=5e-3)


@pytest.mark.parametrize("off", [None, "attention", "dropout"])
def test_each_switch_keeps_torchs_own(recipe, models, recorder, calls, off) -> None:
    noisy = models("bert", "sequence_classification", hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
    switches = {off: False} if off else {}
    loaded = recipe("bert", "sequence_classification", model=noisy, training__fast_paths=switches)
    train(loaded, reporter=recorder)
    assert set(calls) == {"cpu_attention", "drop"} - {{"attention": "cpu_attention", "dropout": "drop"}.get(off)}


def test_float32_without_dropout_is_torchs_own(recipe, recorder, calls) -> None:
    train(recipe(training__bf16=False, training__max_steps=1), reporter=recorder)
    assert not calls


def test_recomputation_takes_the_same_paths(recipe, recorder, calls) -> None:
    words = {"training__bf16": True, "training__fast_paths": BY_INSTRUCTIONS}
    train(recipe(training__gradient_checkpointing=False, name="kept", **words), reporter=recorder)
    kept, once = list(recorder.losses), len(calls)
    recorder.steps.clear()
    train(recipe(training__gradient_checkpointing=True, name="again", **words), reporter=recorder)
    assert len(calls) == 3 * once
    assert recorder.losses == pytest.approx(kept, rel=5e-3)


def test_copies_are_in_place_and_the_weights_come_back() -> None:
    model = tiny_model("llama").requires_grad_(False)
    before = {name: (value.dtype, value.clone()) for name, value in model.state_dict().items()}
    parameters = list(model.parameters())
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
    assert all(own is now for own, now in zip(parameters, model.parameters(), strict=True))


def test_trained_and_tied_weights_are_left_alone() -> None:
    model = tiny_model("llama").requires_grad_(False)
    model.lm_head.weight = model.get_input_embeddings().weight
    trained = model.get_submodule("model.layers.0.mlp.up_proj").weight.requires_grad_()
    chosen = {id(projection.weight) for projection in frozen_projections(model)}
    assert chosen and not chosen & {id(trained), id(model.lm_head.weight)}


@pytest.mark.parametrize("method", [{"name": "lora", "use_dora": True}, {"name": "adapter"}])
def test_copies_train_as_autocast_does_and_evaluate_in_float32(recipe, recorder, monkeypatch, method) -> None:
    words = {"training__bf16": True, "method": method, "data__val_set_size": 4, "training__eval_steps": 3}
    with_copies = train(recipe(name="copies", **words), reporter=recorder)
    losses = list(recorder.losses)
    recorder.steps.clear()
    monkeypatch.setattr("peftcli.training.setup.ComputeWeights", lambda model, dtype: ComputeWeights(model, None))
    plain = train(recipe(name="plain", **words), reporter=recorder)
    assert losses == pytest.approx(list(recorder.losses), rel=2e-3)
    assert with_copies.eval_before["eval_loss"] == plain.eval_before["eval_loss"]


@pytest.mark.parametrize(
    ("device", "by_rows", "together", "alike"),
    [
        ("cpu", True, False, True),
        ("cpu", False, False, False),
        ("cpu", False, True, True),
        ("cuda", False, False, True),
    ],
)
def test_processes_skip_the_same_layers(device: str, by_rows: bool, together: bool, alike: bool) -> None:
    """Else a divided base is gathered in different orders: a run waited for good, or read another layer's weights.

    On a CPU the same generator draws masks, where they are not drawn by rows, and masks should differ.
    """
    drawn = []
    with random_numbers_kept():
        for first in (0, 1):
            rows = DrawnRows.of_step(0, 3, [first, first + 2], [[4, 4]], [4])
            seed_pass(rows, torch.device(device), by_rows=by_rows, together=together)
            drawn.append(float(torch.rand([])))
    assert (drawn[0] == drawn[1]) == alike
