"""What a merge will refuse is said before the first step."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from peftcli.models.read_anatomy import read_anatomy
from peftcli.protocol.apply_method import apply_method
from peftcli.protocol.mergeability import merge_note
from peftcli.protocol.registry import registry
from tests.tiny import tiny_model

SIZES = {"vocab_size": 96, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "num_hidden_layers": 2}


def _note(model: PreTrainedModel, **options: object) -> str | None:
    anatomy = read_anatomy(model)
    params = registry.info("lora").params(r=2, **options)
    return merge_note(anatomy, params, apply_method(model, anatomy, params))


@pytest.mark.parametrize(("family", "module"), [("mixtral", "mlp.experts"), ("llama", "mlp")])
def test_experts_that_a_file_holds_in_tensors_of_their_own_merge(family: str, module: str) -> None:
    assert _note(tiny_model(family, "causal_lm"), modules_to_save=[module]) is None  # type: ignore[arg-type]


def test_projections_that_a_file_holds_joined_do_not() -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("hrm_text", **SIZES))
    assert "q_proj.weight is stored in several pieces" in (_note(model) or "")
