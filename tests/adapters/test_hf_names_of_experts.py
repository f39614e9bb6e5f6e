"""Linears whose names HF peft takes for experts (of shared experts, of dense blocks): it loads them, and so do we."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peftcli.adapters.format import SavedAdapter
from peftcli.adapters.hf.hf_export import hf_peft_files
from peftcli.adapters.hf.hf_library import HfPeft
from peftcli.adapters.loading import load_adapter
from peftcli.adapters.servers import servers_of, servers_to_come
from peftcli.analysis.contract_models import bare
from peftcli.analysis.support.tiny_types import tiny_type
from peftcli.errors import UserError
from peftcli.serving.lora_pairs import lora_files, lora_pairs
from peftcli.training.run import train
from tests.adapters.moved_lora import logits_of, logits_with, save_moved
from tests.matrix.runs import Workshop
from tests.recipes import Recorder
from tests.tiny import tiny_tokenizer

FAMILIES = ("deepseek_v3", "glm4_moe")
"""A dense block in front of blocks with a shared expert."""
CHOICES: dict[str, dict[str, Any]] = {
    "all linears": {"target_modules": "all-linear"},
    "one role": {"target_modules": ["ffn.up"], "lora_dropout": 0.1},
    "beside experts": {"target_modules": ["all-linear", "experts"]},
    "patterns": {"target_modules": "all-linear", "rank_pattern": {"ffn.up": 3}, "alpha_pattern": {"ffn.down": 9}},
}


def _model(family: str) -> nn.Module:
    torch.manual_seed(0)
    return bare(tiny_type(family, "causal_lm")).eval()


def _saved(directory: Path, family: str, options: dict[str, Any]) -> tuple[SavedAdapter, Tensor]:
    return save_moved(directory, _model(family), family, options)


@pytest.mark.parametrize("options", CHOICES.values(), ids=list(CHOICES))
@pytest.mark.parametrize("family", FAMILIES)
def test_hf_peft_loads_what_a_run_left_and_it_is_read_back(
    family: str, options: dict[str, Any], tmp_path: Path
) -> None:
    from peft import PeftModel

    _, expected = _saved(tmp_path, family, options)
    theirs = PeftModel.from_pretrained(_model(family), str(tmp_path)).eval()
    torch.testing.assert_close(logits_of(theirs), expected, atol=1e-5, rtol=0)
    (tmp_path / "peftcli.json").unlink()
    torch.testing.assert_close(logits_with(HfPeft().read(tmp_path, None), _model(family)), expected, atol=1e-5, rtol=0)


def test_other_models_keep_their_names_in_target_modules(tmp_path: Path) -> None:
    _saved(tmp_path, "llama", {"target_modules": ["ffn.up", "ffn.down"]})
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["target_modules"] == ["down_proj", "up_proj"] and "target_parameters" not in config


def test_a_dora_of_them_is_kept_in_our_own_layout(tmp_path: Path) -> None:
    saved, _ = _saved(tmp_path, "deepseek_v3", {"target_modules": ["ffn.up"], "use_dora": True})
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "PEFTCLI"
    with pytest.raises(UserError, match="it is a DoRA of up_proj, which HF peft takes for experts of this model"):
        hf_peft_files(saved, tmp_path)


def test_before_training_it_is_said_that_no_server_takes_a_dora_of_them(tmp_path: Path) -> None:
    dora: dict[str, Any] = {"target_modules": ["ffn.up"], "use_dora": True}
    saved, _ = _saved(tmp_path / "a", "deepseek_v3", dora)
    assert servers_to_come(saved.params, "causal_lm", saved) == []
    saved, _ = _saved(tmp_path / "b", "llama", dora)
    assert servers_to_come(saved.params, "causal_lm", saved) == ["hf peft"]
    base = tmp_path / "deepseek_v3"
    _model("deepseek_v3").save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    recorder, changes = Recorder(), {"model__name_or_path": str(base), "method": {"name": "lora", "r": 2, **dora}}
    train(Workshop(tmp_path).recipe("dora", "llama", "lora", **changes), reporter=recorder)
    assert recorder.facts["servers"] == "none with the adapter; after a merge all that load the base"


def test_a_router_with_a_buffer_is_kept_in_our_own_layout_for_hf_peft_asks_for_the_buffer(tmp_path: Path) -> None:
    router: dict[str, Any] = {"target_modules": ["attn.q"], "modules_to_save": ["mlp.gate"]}
    saved, expected = _saved(tmp_path, "glm4_moe", router)
    blocks = {name.removesuffix(".mlp.gate.e_score_correction_bias") for name in saved.meta.buffers}
    assert blocks == {"model.layers.1", "model.layers.2", "model.layers.3"}
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "PEFTCLI"
    torch.testing.assert_close(logits_with(load_adapter(tmp_path), _model("glm4_moe")), expected, atol=1e-5, rtol=0)
    with pytest.raises(UserError, match="gate whole, and HF peft needs its buffer e_score_correction_bias"):
        hf_peft_files(saved, tmp_path)


def test_servers_take_them_by_the_names_of_their_tensors(tmp_path: Path) -> None:
    options: dict[str, Any] = {"target_modules": ["ffn.up"]}
    _saved(tmp_path / "run" / "adapter", "deepseek_v3", options)
    assert "vllm" in servers_of(tmp_path / "run")
    options["alpha_pattern"] = {r"layers\.0\.mlp\.up_proj": 9}
    saved, _ = _saved(tmp_path / "other", "deepseek_v3", options)
    scales = {pair.module: pair.scale for pair in lora_pairs(lora_files(saved, tmp_path, "vllm"))}
    assert scales["model.layers.0.mlp.up_proj"] == 4.5
    assert scales["model.layers.1.mlp.shared_experts.up_proj"] == 3.0
