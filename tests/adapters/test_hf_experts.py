"""LoRA on experts with HF peft as the oracle: our files give our logits there, and its files give its logits here."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peftcli.adapters.format import SavedAdapter
from peftcli.adapters.hf.hf_library import HfPeft
from peftcli.adapters.loading import load_adapter
from peftcli.adapters.transfer import export_run
from peftcli.errors import UserError
from tests.adapters.moved_lora import logits_of, logits_with, save_moved
from tests.models.experts.tiny_experts import STACKED, tiny_experts

WHOLE: dict[str, dict[str, Any]] = {
    "all": {"target_modules": ["experts"]},
    "beside others": {"target_modules": ["attn.q", "experts.down"], "lora_dropout": 0.1, "use_rslora": True},
    "by HF peft's name": {"target_modules": [], "target_parameters": ["experts.gate_up_proj"], "r": 3},
    "patterns": {
        "target_modules": ["experts", "attn.v"],
        "rank_pattern": {"experts.down": 3, r"layers\.1\.mlp\.experts\.gate_up_proj": 5},
        "alpha_pattern": {"experts.down": 9},
    },
}
PADDED: dict[str, dict[str, Any]] = {
    "one role": {"target_modules": ["experts.up", "experts.down"]},
    "two roles": {"target_modules": ["experts.up", "experts.gate"], "alpha_pattern": {"experts.up": 5}},
    "some experts": {"target_modules": ["experts", "attn.q"], "experts_to_transform": [1, 3]},
    "a role of one": {"target_modules": ["experts.gate"], "experts_to_transform": 2, "use_rslora": True},
}


def _saved(directory: Path, family: str, options: dict[str, Any]) -> Tensor:
    return save_moved(directory, tiny_experts(family), "mixtral", options)[1]


def _hf_load(directory: Path, family: str) -> nn.Module:
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\.|transformers\.")
        return PeftModel.from_pretrained(tiny_experts(family), str(directory)).eval()


def _ours(directory: Path, family: str) -> Tensor:
    return _with(load_adapter(directory), family)


def _with(saved: SavedAdapter, family: str) -> Tensor:
    return logits_with(saved, tiny_experts(family))


@pytest.mark.parametrize("options", WHOLE.values(), ids=list(WHOLE))
def test_hf_peft_loads_what_a_run_left(options: dict[str, Any], tmp_path: Path) -> None:
    expected = _saved(tmp_path / "a", "mixtral", options)
    torch.testing.assert_close(logits_of(_hf_load(tmp_path / "a", "mixtral")), expected, atol=1e-5, rtol=0)
    assert torch.equal(_ours(tmp_path / "a", "mixtral"), expected)


@pytest.mark.parametrize("family", [family for family in STACKED if family != "mixtral"])
def test_every_layout(family: str, tmp_path: Path) -> None:
    expected = _saved(tmp_path / "a", family, {"target_modules": ["experts", "attn.q"], "bias": "all"})
    torch.testing.assert_close(logits_of(_hf_load(tmp_path / "a", family)), expected, atol=1e-5, rtol=0)
    assert torch.equal(_ours(tmp_path / "a", family), expected)


@pytest.mark.parametrize("options", PADDED.values(), ids=list(PADDED))
@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_roles_and_some_experts_are_exported_as_whole_parameters(
    family: str, options: dict[str, Any], tmp_path: Path
) -> None:
    expected = _saved(tmp_path / "run", family, options)
    assert json.loads((tmp_path / "run" / "adapter_config.json").read_text())["peft_type"] == "PEFTCLI"
    assert torch.equal(_ours(tmp_path / "run", family), expected)
    export_run(tmp_path / "run", tmp_path / "hf", to="hf-peft")
    torch.testing.assert_close(logits_of(_hf_load(tmp_path / "hf", family)), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
@pytest.mark.parametrize("names", [["experts.gate_up_proj", "experts.down_proj"], ["down_proj"]])
def test_what_hf_peft_saves_is_read(family: str, names: list[str], tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=3,
        target_modules=["q_proj"],
        target_parameters=names,
        rank_pattern={r"experts\.down_proj": 2},
        init_lora_weights=False,
    )
    theirs = get_peft_model(tiny_experts(family), config).eval()
    theirs.save_pretrained(str(tmp_path / "hf"))
    read = HfPeft().read(tmp_path / "hf", None)
    assert read.params.target_modules and read.params.target_parameters  # type: ignore[attr-defined]
    torch.testing.assert_close(_with(read, family), logits_of(theirs), atol=1e-5, rtol=0)


def test_names_that_do_not_agree_with_the_file_are_refused(tmp_path: Path) -> None:
    _saved(tmp_path / "run", "mixtral", {"target_modules": ["experts"]})
    export_run(tmp_path / "run", tmp_path / "hf", to="hf-peft")
    path = tmp_path / "hf" / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "target_parameters": ["down_proj"]}))
    with pytest.raises(UserError, match=r"names down_proj, and the file has 2 changes at .*experts"):
        HfPeft().read(tmp_path / "hf", None)
    path.write_text(json.dumps({**config, "rank_pattern": {"down_proj": 7}}))
    with pytest.raises(UserError, match="no pairs of rank 7"):
        HfPeft().read(tmp_path / "hf", None)
