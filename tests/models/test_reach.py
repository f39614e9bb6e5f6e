"""What a method does not reach is said with numbers, where `peft methods --model` and the training show it."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoConfig

from peftcli.analysis.fitting import fits
from peftcli.models.read_anatomy import read_anatomy
from peftcli.protocol.apply_method import apply_method
from peftcli.protocol.registry import registry
from tests.models.structure.small_models import MODELS, small_model


def _notes(family: str, **method: object) -> list[str]:
    model = small_model(family)
    return apply_method(model, read_anatomy(model), registry.info(str(method["name"])).params(**method)).notes


def test_roles_that_some_blocks_lack_are_counted() -> None:
    (note,) = _notes("qwen3_next", name="lora")
    assert note.startswith("attn.q and attn.v are in 1 of 2 blocks: the others have no such part")


def test_branches_that_some_blocks_lack_are_counted() -> None:
    notes = _notes("nemotron_h", name="adapter")
    assert [note.partition(":")[0] for note in notes] == ["the branch attn and the branch ffn are in 2 of 4 blocks"]


@pytest.mark.parametrize("family", ["deepseek_v3", "gpt_oss", "jamba"])
def test_nothing_is_said_where_every_block_has_the_branch(family: str) -> None:
    assert _notes(family, name="adapter") == []


def test_nothing_is_said_of_roles_where_modules_without_a_role_are_named_too() -> None:
    assert not [note for note in _notes("jamba", name="lora", target_modules="all-linear", r=1) if "blocks" in note]


def test_layers_that_the_recipe_leaves_out_are_not_missing() -> None:
    assert _notes("glm4", name="lora", layers_to_transform=[1]) == []


def test_a_model_without_the_branch_refuses_adapters() -> None:
    model = small_model("mamba")
    method = registry.method("adapter")
    reasons = method.check(read_anatomy(model), registry.info("adapter").params(placement="pfeiffer"))
    assert "no ffn branch was found in this mamba model" in reasons[0]


def test_the_recipe_may_name_a_branch_that_was_not_found() -> None:
    anatomy = read_anatomy(small_model("mamba"), {"ffn": "mixer.out_proj"})
    assert [(block.kind, block.exit) for block in anatomy.blocks if block.layer == 0 and block.kind == "ffn"] == [
        ("ffn", "backbone.layers.0.mixer.out_proj")
    ]


def test_methods_with_a_model_show_what_they_do_not_reach(tmp_path: Path) -> None:
    AutoConfig.for_model("qwen3_next", **MODELS["qwen3_next"]).save_pretrained(tmp_path)
    found = fits(["lora", "adapter"], str(tmp_path), "causal_lm")
    assert "1 of 2 blocks" in found["lora"].notes[0]
    assert found["adapter"].notes == ()
