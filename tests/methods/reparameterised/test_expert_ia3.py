"""(IA)3 on experts: the start, the gradients, the formula, merging in memory, and what is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peftcli.adapters.format import describe
from peftcli.adapters.hf.layouts.ia3 import IA3Format
from peftcli.assembly.reached_weights import reached_share
from peftcli.errors import UserError
from peftcli.layers.expert_parts.expert_rescale import ExpertsRescale
from peftcli.merging.live_rules import fold_rules
from peftcli.methods.ia3 import IA3Params
from peftcli.models.load.identity import BaseIdentity
from peftcli.models.read_anatomy import read_anatomy
from peftcli.protocol.apply_method import apply_method
from peftcli.protocol.attachment import Attachment
from peftcli.protocol.registry import registry
from peftcli.recipe.method_params import MethodParams
from tests.models.experts.tiny_experts import APART, EXPERTS, STACKED, tiny_experts

IDS = torch.tensor([[5, 6, 7, 8, 9, 2, 17, 33], [11, 12, 13, 14, 2, 2, 90, 91]])
CHOICES: dict[str, dict[str, Any]] = {
    "whole": {"target_modules": ["experts"]},
    "roles": {"target_modules": ["attn.k", "experts.up", "experts.down"]},
    "some experts": {"target_modules": ["experts"], "experts_to_transform": [3, 1]},
    "roles of one": {"target_modules": ["experts.gate", "experts.down", "attn.v"], "experts_to_transform": 2},
}
LORA = {"name": "lora", "r": 2, "target_modules": ["experts", "attn.q"]}
IA3 = {"name": "ia3", "target_modules": ["experts", "attn.k"]}


def _params(name: str = "ia3", **options: Any) -> MethodParams:
    return registry.info(name).params(**options)


def _moved(model: nn.Module, params: MethodParams) -> Attachment:
    attachment = apply_method(model, read_anatomy(model), params)
    attachment.initialise(model)
    with torch.no_grad():
        for parameter in attachment.trainable_parameters().values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.eval()
    return attachment


def _logits(model: nn.Module) -> Tensor:
    extra = {"decoder_input_ids": IDS[:, :3]} if model.config.is_encoder_decoder else {}
    logits: Tensor = model(input_ids=IDS, **extra).logits
    return logits


@pytest.mark.parametrize("family", STACKED)
def test_vectors_start_as_the_base_and_get_gradients(family: str) -> None:
    model = tiny_experts(family)
    with torch.no_grad():
        before = _logits(model)
    attachment = apply_method(model, read_anatomy(model), _params(target_modules=["experts"]))
    attachment.initialise(model.eval())
    assert torch.equal(_logits(model), before)
    _logits(model).square().mean().backward()
    trained = attachment.trainable_parameters()
    assert all(each.grad is not None and each.grad.abs().sum() > 0 for each in trained.values())
    assert all(".experts." in name for name in trained)
    attachment.detach()
    assert torch.equal(_logits(model), before)


@pytest.mark.parametrize("options", CHOICES.values(), ids=list(CHOICES))
@pytest.mark.parametrize("family", [*STACKED, APART])
def test_a_merge_in_memory_gives_the_same_outputs(family: str, options: dict[str, Any]) -> None:
    if family == APART and "experts.gate" in options["target_modules"]:
        options = {**options, "target_modules": ["experts.up", "attn.v"]}  # these experts have no gate
    model, params = tiny_experts(family), _params(**options)
    plain, anatomy = copy.deepcopy(model), read_anatomy(model)
    attachment = _moved(model, params)
    rules = registry.method("ia3").merge_rules(anatomy, params, attachment.state_dict())
    with torch.no_grad():
        expected = _logits(model)
        fold_rules(plain, rules)  # type: ignore[arg-type]
        torch.testing.assert_close(_logits(plain), expected, atol=2e-6, rtol=0)
    again = apply_method(fresh := tiny_experts(family), anatomy, params)
    again.load_state_dict({key: tensor.clone() for key, tensor in attachment.state_dict().items()})
    with torch.no_grad():
        assert torch.equal(_logits(fresh), expected)


def test_the_last_projection_has_its_input_rescaled_and_others_their_output() -> None:
    model = tiny_experts("gpt_oss")
    attachment = _moved(model, _params(target_modules=["experts.up", "experts.down"]))
    sides = {placed.key.rpartition(".")[2]: placed.part for placed in attachment.placed}
    up, down = sides["up"], sides["down_proj"]
    assert isinstance(up, ExpertsRescale) and isinstance(down, ExpertsRescale)
    assert up.ia3_l.shape == (EXPERTS, 48, 1) and down.ia3_l.shape == (EXPERTS, 1, 48)
    x, y = torch.randn(3, 48), torch.randn(3, 96)
    entering, leaving = down.entering(), up.leaving((), None)
    assert entering is not None and leaving is not None and down.leaving((), None) is None
    torch.testing.assert_close(entering(2, x), x * down.ia3_l[2, 0])
    changed = leaving(1, x, y)
    torch.testing.assert_close(changed[:, 1::2], y[:, 1::2] * up.ia3_l[1, :, 0])  # gate and up lie in turn
    assert torch.equal(changed[:, ::2], y[:, ::2])


def test_some_experts_change_and_the_others_stay() -> None:
    model = tiny_experts("gpt_oss")
    params = _params(target_modules=["experts.up", "experts.down"], experts_to_transform=[2, 0])
    attachment = _moved(model, params)
    rules = registry.method("ia3").merge_rules(read_anatomy(model), params, attachment.state_dict())
    parts = {placed.key.rpartition(".")[2]: placed.part for placed in attachment.placed[:2]}
    for name in ("gate_up_proj", "gate_up_proj_bias", "down_proj"):
        before = model.get_parameter(f"model.layers.0.mlp.experts.{name}").detach()
        change = rules[f"model.layers.0.mlp.experts.{name}"].apply(before.clone()) / before
        assert torch.equal(change[[1, 3]], torch.ones_like(change[[1, 3]]))
        vectors = parts["down_proj" if "down" in name else "up"].ia3_l.detach()  # of 0, then of 2
        found = change[[0, 2]][..., 1::2] if "up" in name else change[[0, 2]]  # (in, out): gate and up in turn
        wanted = vectors.transpose(1, 2) if name != "gate_up_proj_bias" else vectors.squeeze(2)
        torch.testing.assert_close(found, wanted.expand_as(found))


def test_the_numbers_of_experts_are_checked() -> None:
    model = tiny_experts("mixtral")
    for options, reason in (
        ({"target_modules": ["experts"], "experts_to_transform": [4]}, "a block has experts 0 to 3, not 4"),
        ({"experts_to_transform": [1]}, "none of the targets is an expert"),
    ):
        with pytest.raises(UserError, match=reason):
            apply_method(model, read_anatomy(model), _params(**options))
    with pytest.raises(ValueError, match="leaves no expert"):
        _params(target_modules=["experts"], experts_to_transform=[])


@pytest.mark.parametrize("parts", [[LORA, IA3], [IA3, LORA]])
def test_beside_lora(parts: list[dict[str, Any]]) -> None:
    model, params = tiny_experts("gpt_oss"), _params("compose", parts=parts)
    plain, anatomy = copy.deepcopy(model), read_anatomy(model)
    attachment = _moved(model, params)
    with torch.no_grad():
        rules = registry.method("compose").merge_rules(anatomy, params, attachment.state_dict())
        fold_rules(plain, rules)  # type: ignore[arg-type]
        torch.testing.assert_close(_logits(plain), _logits(model), atol=5e-6, rtol=0)


def test_what_does_not_fit_is_refused() -> None:
    model = tiny_experts("mixtral")
    gated = _params("compose", parts=[{**IA3}], gates=True)
    with pytest.raises(UserError, match="takes no gate"):
        apply_method(model, read_anatomy(model), gated)
    model = tiny_experts("mixtral")
    model.model.layers[0].mlp.experts.to(torch.float8_e4m3fn)
    with pytest.raises(UserError, match=r"are quantised .*float8"):
        apply_method(model, read_anatomy(model), _params(target_modules=["experts"]))


def test_hf_peft_has_no_such_vectors() -> None:
    model = tiny_experts("mixtral")
    params, anatomy = IA3Params(target_modules=["experts"]), read_anatomy(model)
    attachment = apply_method(model, anatomy, params)
    identity = BaseIdentity("tiny", None, "sha256:0", None, "float32", "mixtral", {})
    meta, state = describe(attachment, anatomy, task="causal_lm", base=identity), attachment.state_dict()
    assert "3-D parameter of experts" in (IA3Format().why_not(params, meta, state) or "")
    assert IA3Format().whole_module_files(params, meta, state) is None


def test_the_share_of_the_weights_that_is_reached() -> None:
    model = tiny_experts("mixtral")
    total = sum(parameter.numel() for parameter in model.parameters())
    attachment = apply_method(model, read_anatomy(model), _params(target_modules=["experts"]))
    assert reached_share(attachment) == pytest.approx(2 * EXPERTS * (96 * 32 + 48 * 32) / total)
