"""Where experts are, how a recipe names them, and what it is told where there are none."""

from __future__ import annotations

import pytest
import torch

from peftcli.errors import UserError
from peftcli.models.anatomy import Anatomy, ExpertRole, FusedSlice
from peftcli.models.experts.left_out_experts import experts_note
from peftcli.models.experts.named_experts import ExpertChoice
from peftcli.models.experts.read_experts import OUTSIDE
from peftcli.models.read_anatomy import read_anatomy
from peftcli.models.targets.target import Target
from peftcli.models.targets.target_modules import resolve_targets
from peftcli.protocol.apply_method import apply_method
from peftcli.protocol.registry import registry
from tests.models.experts.tiny_experts import APART, EXPERTS, STACKED, tiny_experts
from tests.models.experts.tiny_experts import OUTSIDE as OUTSIDE_FAMILY
from tests.tiny import tiny_model


def _read(family: str) -> tuple[torch.nn.Module, Anatomy]:
    with torch.device("meta"):
        model = tiny_experts(family)
    return model, read_anatomy(model)


def _targets(family: str, entries: list[str] | str, **options: object) -> list[Target]:
    model, anatomy = _read(family)
    return resolve_targets(model, anatomy, entries, experts=ExpertChoice(), **options)  # type: ignore[arg-type]


def _of_last_block(anatomy: Anatomy) -> dict[str | None, ExpertRole]:
    return {role.role: role for role in anatomy.experts if role.layer == 1}


@pytest.mark.parametrize("family", STACKED)
def test_roles_of_stacked_experts(family: str) -> None:
    model, anatomy = _read(family)
    assert anatomy.roles()[-3:] == ["experts.up", "experts.gate", "experts.down"]
    for role in anatomy.experts:
        shape = model.get_parameter(role.path).shape
        whole = role.whole()
        sides = (whole.in_features, whole.out_features) if role.transposed else (whole.out_features, whole.in_features)
        assert shape == (role.experts, *sides) and role.experts == EXPERTS
    assert {role.layer for role in anatomy.experts} == ({1} if family == "qwen3_moe" else {0, 1})


def test_gate_and_up_lie_in_halves_or_in_turn() -> None:
    assert _of_last_block(_read("mixtral")[1])["experts.up"].slice == FusedSlice(1, 96, 48, 48)
    in_turn = _of_last_block(_read("gpt_oss")[1])
    assert in_turn["experts.gate"].slice == FusedSlice(48, 2, 0, 1)
    assert in_turn["experts.up"].slice == FusedSlice(48, 2, 1, 1)
    assert in_turn["experts.down"].bias == "model.layers.1.mlp.experts.down_proj_bias"


def test_experts_that_are_modules_have_the_same_roles() -> None:
    targets = _targets(APART, ["experts.up"])
    assert len(targets) == 2 * EXPERTS and all(target.kind == "linear" for target in targets)
    assert targets[0].module.endswith("mlp.experts.expert_0.wi") and targets[0].role == "experts.up"
    assert not any("experts" in target.module for target in _targets(APART, "all-linear"))


def test_names() -> None:
    keys = [target.key.removeprefix("model.layers.1.mlp.experts.") for target in _targets("qwen3_moe", ["experts"])]
    assert keys == ["gate_up_proj", "down_proj"]
    assert [target.role for target in _targets("qwen3_moe", ["experts.up", "experts.down"])] == [
        "experts.up",
        "experts.down",
    ]
    named = _targets("qwen3_moe", ["attn.q", "mlp.experts.gate_up_proj"])
    assert [target.role for target in named] == ["attn.q", "attn.q", None]
    # the whole takes the place of a role of it, and one role may be left out of a whole
    assert len(_targets("qwen3_moe", ["experts.up", "gate_up_proj"])) == 1
    kept = _targets("qwen3_moe", ["experts"], exclude=["experts.up"])
    assert [target.role for target in kept] == ["experts.gate", "experts.down"]


def test_what_is_not_there() -> None:
    with pytest.raises(UserError, match=r"this llama model has no experts\.up"):
        resolve_targets(model := tiny_model("llama"), read_anatomy(model), ["experts.up"], experts=ExpertChoice())
    with pytest.raises(UserError, match=r"nearest: .*experts.up"):
        _targets("mixtral", ["experts.upp"])
    model, anatomy = _read("mixtral")
    with pytest.raises(UserError, match="no parameter of experts is named 'w1'") as caught:
        resolve_targets(model, anatomy, ["attn.q"], experts=ExpertChoice(parameters=["w1"]))
    assert caught.value.problems[0].suggestion == "there are: experts.down_proj, experts.gate_up_proj"
    with pytest.raises(UserError, match="a block has experts 0 to 3, not 4, 9"):
        resolve_targets(model, anatomy, ["experts"], experts=ExpertChoice(numbers=[4, 1, 9]))
    with pytest.raises(UserError, match="none of the targets is an expert"):
        resolve_targets(model, anatomy, ["attn.q"], experts=ExpertChoice(numbers=[1]))


@pytest.mark.parametrize(
    ("entry", "instead"),
    [
        ("gate", "to train it whole, name it in method.modules_to_save: [mlp.gate]"),
        ("mlp.experts", "experts names all experts, and a role, such as experts.up, one projection of each"),
    ],
)
def test_a_router_and_the_module_of_experts_are_reached_otherwise(entry: str, instead: str) -> None:
    model, anatomy = _read("mixtral")
    with pytest.raises(UserError, match="not a linear") as caught:
        resolve_targets(model, anatomy, [entry], experts=ExpertChoice())
    assert caught.value.problems[0].suggestion == instead
    params = registry.info("lora").params(r=2, modules_to_save=["mlp.gate"])
    assert "model.layers.0.mlp.gate.weight" in apply_method(model, anatomy, params).trainable_parameters()


def test_experts_that_no_function_reaches_are_left_out_with_the_reason() -> None:
    model, anatomy = _read(OUTSIDE_FAMILY)
    assert not anatomy.experts and ("model.layers.0.feed_forward.experts", OUTSIDE) in anatomy.left_out
    with pytest.raises(UserError, match=r"has no experts .*experts interface"):
        resolve_targets(model, anatomy, ["experts"], experts=ExpertChoice())


@pytest.mark.parametrize("method", ["oft", "hira", "vera", "miss"])
def test_a_method_of_linears_refuses_stacked_experts(method: str) -> None:
    model, anatomy = _read("mixtral")
    with pytest.raises(UserError, match=r"experts.down_proj \(and 1 more\) is a 3-D parameter"):
        apply_method(model, anatomy, registry.info(method).params(target_modules=["experts.down"]))


def test_all_linear_says_that_it_leaves_the_experts_out() -> None:
    model, anatomy = _read("mixtral")
    share = sum(model.get_parameter(path).numel() for path in {role.path for role in anatomy.experts}) / sum(
        parameter.numel() for parameter in model.parameters()
    )
    note = apply_method(model, anatomy, registry.info("lora").params(target_modules="all-linear")).notes[-1]
    assert note.startswith(f"all-linear leaves the experts out, {share:.1%} of the model's weights")
    assert experts_note(model, anatomy, ["attn.q"], []) is None
    assert experts_note(model, anatomy, None, []) is None  # (IA)3 has places of its own
    named = registry.info("lora").params(target_modules=["all-linear", "experts.down"], r=2)
    assert not any("all-linear" in note for note in apply_method(*_read("mixtral"), named).notes)
