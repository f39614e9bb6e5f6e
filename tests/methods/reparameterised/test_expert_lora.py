"""LoRA on experts: the start, the gradients, the formula, merging in memory, and what is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peftcli.assembly.reached_weights import reached_share
from peftcli.attachments.expert_places import whole_rows
from peftcli.errors import UserError
from peftcli.layers.expert_parts.expert_delta import ExpertsDelta, expert_factors
from peftcli.layers.expert_parts.expert_dora import ExpertsDora
from peftcli.merging.live_rules import fold_rules
from peftcli.methods.lora import METHOD, LoraParams
from peftcli.models.read_anatomy import read_anatomy
from peftcli.protocol.apply_method import apply_method
from peftcli.protocol.attachment import Attachment
from tests.models.experts.tiny_experts import APART, EXPERTS, STACKED, tiny_experts

IDS = torch.tensor([[5, 6, 7, 8, 9, 2, 17, 33], [11, 12, 13, 14, 2, 2, 90, 91]])
CHOICES: dict[str, dict[str, Any]] = {
    "whole": {"target_modules": ["experts"], "rank_pattern": {"experts.down": 3}},
    "roles": {"target_modules": ["experts.up", "experts.down", "attn.q"]},
    "both halves": {"target_modules": ["experts.up", "experts.gate"], "alpha_pattern": {"experts.up": 3}},
    "some experts": {"target_modules": ["experts"], "experts_to_transform": [3, 1], "use_rslora": True},
    "dora": {"target_modules": ["experts.up", "experts.down"], "use_dora": True},
    "dora of some": {"target_modules": ["experts"], "experts_to_transform": [3, 1], "use_dora": True},
}


def _params(**options: Any) -> LoraParams:
    return LoraParams(**{"r": 2, "lora_alpha": 6, **options})


def _attached(model: nn.Module, params: LoraParams) -> Attachment:
    attachment = apply_method(model, read_anatomy(model), params)
    attachment.initialise(model)
    model.eval()
    return attachment


def _move(attachment: Attachment) -> None:
    with torch.no_grad():
        for parameter in attachment.trainable_parameters().values():
            parameter.add_(0.1 * torch.randn_like(parameter))


def _logits(model: nn.Module) -> Tensor:
    extra = {"decoder_input_ids": IDS[:, :3]} if model.config.is_encoder_decoder else {}
    logits: Tensor = model(input_ids=IDS, **extra).logits
    return logits


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("family", [*STACKED, APART])
def test_the_start_is_the_base_and_every_factor_gets_a_gradient(family: str, dora: bool) -> None:
    model = tiny_experts(family)
    with torch.no_grad():
        before = _logits(model)
    attachment = _attached(model, _params(target_modules=["experts"], use_dora=dora))
    assert torch.equal(_logits(model), before)
    _move(attachment)
    _logits(model).square().mean().backward()
    gradients = {name: each.grad for name, each in attachment.trainable_parameters().items()}
    reached = [name for name, each in gradients.items() if each is not None and each.abs().sum() > 0]
    assert reached == list(gradients) if family != APART else len(reached) > 1  # one expert may get no token at all
    assert not any("router" in name or name.endswith(("gate.weight", "gate.bias")) for name in gradients)
    attachment.detach()
    assert torch.equal(_logits(model), before)


@pytest.mark.parametrize("options", CHOICES.values(), ids=list(CHOICES))
@pytest.mark.parametrize("family", [*STACKED, APART])
def test_a_merge_in_memory_gives_the_same_outputs(family: str, options: dict[str, Any]) -> None:
    model, params = tiny_experts(family), _params(**options)
    plain, anatomy = copy.deepcopy(model), read_anatomy(model)
    if family == APART and params.target_modules == ["experts.up", "experts.gate"]:
        params = _params(target_modules=["experts.up"])  # these experts have no gate
    attachment = _attached(model, params)
    _move(attachment)
    with torch.no_grad():
        expected = _logits(model)
        fold_rules(plain, METHOD.merge_rules(anatomy, params, attachment.state_dict()))  # type: ignore[arg-type]
        torch.testing.assert_close(_logits(plain), expected, atol=2e-6, rtol=0)
    state = {key: tensor.clone() for key, tensor in attachment.state_dict().items()}
    again = _attached(fresh := tiny_experts(family), params)
    again.load_state_dict(state)
    with torch.no_grad():
        assert torch.equal(_logits(fresh), expected)


def test_some_experts_change_and_the_others_stay() -> None:
    model = tiny_experts("mixtral")
    params = _params(target_modules=["experts.down"], experts_to_transform=1)
    attachment = _attached(model, params)
    _move(attachment)
    name = "model.layers.0.mlp.experts.down_proj"
    before = model.get_parameter(name).detach()
    rules = METHOD.merge_rules(read_anatomy(model), params, attachment.state_dict())
    changed = rules[name].apply(before.clone()) - before
    assert [expert for expert in range(EXPERTS) if changed[expert].abs().max() > 0] == [1]
    part = attachment.placed[0].part
    assert isinstance(part, ExpertsDelta) and part.lora_A.weight.shape == (2, 48)
    torch.testing.assert_close(changed[1], 3.0 * part.lora_B.weight @ part.lora_A.weight)


def test_dora_is_the_written_out_formula_of_each_expert() -> None:
    """y = m / |W + s B A| (W + s B A) x + b, one row after the other."""
    model = tiny_experts("gpt_oss")
    attachment = _attached(model, _params(target_modules=["experts.up"], use_dora=True))
    _move(attachment)
    part = attachment.placed[0].part
    assert isinstance(part, ExpertsDora) and part.rows is not None
    weights, biases = part.base.weights(), part.base.biases()
    assert biases is not None
    x, every_a, every_b = torch.randn(3, 32), *part.factors()
    for expert in range(EXPERTS):
        y = torch.nn.functional.linear(x, weights[expert], biases[expert])
        expected = y.clone()
        for row in range(part.rows.features):
            own = part.rows.take(torch.arange(len(biases[expert])))[row]
            w = weights[expert][own] + 3.0 * every_b[expert][row] @ every_a[expert]
            m = part.lora_magnitude_vector[expert, row]
            expected[:, own] = m * (x @ w) / w.square().sum().sqrt() + biases[expert][own]
        found = part.leaving(weights, biases)(expert, x, y)
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("dora", [False, True])
def test_rows_of_one_expert_change_as_the_whole_does(dora: bool) -> None:
    """A base's file may hold each expert, and gate and up, in tensors of their own."""
    model = tiny_experts("mixtral")
    params = _params(target_modules=["experts.up", "experts.gate"][: 2 - dora], use_dora=dora)
    attachment = _attached(model, params)
    _move(attachment)
    name = "model.layers.1.mlp.experts.gate_up_proj"
    rule = METHOD.merge_rules(read_anatomy(model), params, attachment.state_dict())[name]
    base = model.get_parameter(name).detach()
    whole = rule.apply(base.clone())
    for expert, start in ((2, 48), (0, 0)):
        rows = base[expert, start : start + 48].clone()
        for step in rule.in_steps():
            assert step.rows is not None
            rows = step.rows(expert, start, rows)
        assert torch.equal(rows, whole[expert, start : start + 48])
        assert torch.equal(rows, base[expert, start : start + 48]) == (dora and start == 0)  # the gate's stay


def test_the_factors_lie_as_in_hf_peft() -> None:
    a, b = torch.randn(EXPERTS * 2, 3), torch.randn(5, 2 * EXPERTS)
    every_a, every_b = expert_factors(a, b, 2)
    theirs = torch.einsum("o r e, e r i -> e o i", b.reshape(5, -1, EXPERTS), a.reshape(EXPERTS, -1, 3))
    torch.testing.assert_close(torch.stack([y @ x for x, y in zip(every_a, every_b, strict=True)]), theirs)


def test_a_role_in_turn_has_every_second_row() -> None:
    role = next(role for role in read_anatomy(tiny_experts("gpt_oss")).experts if role.role == "experts.up")
    rows = whole_rows(torch.ones(48, 2), role)
    assert rows.shape == (96, 2) and torch.equal(rows[1::2], torch.ones(48, 2)) and not rows[::2].any()


def test_dropout_and_lora_fa() -> None:
    model = tiny_experts("mixtral")
    attachment = _attached(model, _params(target_modules=["experts"], lora_dropout=0.5, freeze_a=True))
    assert all(name.endswith("lora_B.weight") for name in attachment.trainable_parameters())
    _move(attachment)
    model.train()
    with torch.no_grad():
        assert not torch.equal(_logits(model), _logits(model))
        model.eval()
        assert torch.equal(_logits(model), _logits(model))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"init_lora_weights": "pissa"}, "pissa decomposes one matrix, and .*gate_up_proj holds 4"),
        ({"bias": "lora_only"}, "bias: lora_only is not defined for the experts"),
        ({"r": 33}, "rank 33 is above the matrix"),
    ],
)
def test_what_experts_cannot_have_is_refused(options: dict[str, Any], reason: str) -> None:
    with torch.device("meta"):
        model = tiny_experts("mixtral")
    with pytest.raises(UserError, match=reason):
        apply_method(model, read_anatomy(model), _params(target_modules=["experts"], **options))


def test_quantised_experts_are_refused() -> None:
    model = tiny_experts("mixtral")
    model.model.layers[0].mlp.experts.to(torch.float8_e4m3fn)
    with pytest.raises(UserError, match=r"are quantised .*float8"):
        apply_method(model, read_anatomy(model), _params(target_modules=["experts"]))


def test_the_share_of_the_weights_that_is_reached() -> None:
    model = tiny_experts("mixtral")
    total = sum(parameter.numel() for parameter in model.parameters())
    experts = 2 * EXPERTS * (96 * 32 + 48 * 32)
    for options, reached in (
        ({}, experts),
        ({"experts_to_transform": [0]}, experts / EXPERTS),
        ({"target_modules": ["experts.up", "attn.q"]}, 2 * EXPERTS * 48 * 32 + 2 * 32 * 32),
    ):
        attachment = apply_method(model, read_anatomy(model), _params(**{"target_modules": ["experts"], **options}))
        assert reached_share(attachment) == pytest.approx(reached / total)
        attachment.detach()
