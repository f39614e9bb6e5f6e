"""A merge of LoRA on experts: into files that hold each expert in tensors of its own, and into files that hold all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from peftcli.analysis.adapter_view import view_adapter
from peftcli.merging.merge_run import merge_run
from peftcli.models.weights.checkpoint_names import CheckpointNames
from tests import tiny
from tests.merging.runs import make_run
from tests.models.experts.tiny_experts import family_config
from tests.tiny import tiny_model

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "dora": ("mixtral", {"target_modules": ["experts.up", "experts.down"], "use_dora": True}),
    "ia3": ("qwen3_moe", {"name": "ia3", "target_modules": ["experts", "attn.k"]}),
    "ia3, in turn, with biases": ("gpt_oss", {"name": "ia3", "target_modules": ["experts.gate", "experts.down"]}),
    "trained whole": ("mixtral", {"target_modules": ["attn.q"], "modules_to_save": ["mlp.experts"]}),
    "trained whole, beside lora": ("qwen3_moe", {"target_modules": ["experts"], "modules_to_save": ["mlp.gate"]}),
    "biases": ("gpt_oss", {"name": "bitfit", "terms": ["experts", "attn.q"]}),
    "whole": ("mixtral", {"target_modules": ["experts", "attn.q"]}),
    "roles": ("qwen3_moe", {"target_modules": ["experts.up", "experts.down"], "use_rslora": True}),
    "some experts": ("mixtral", {"target_modules": ["experts.gate"], "experts_to_transform": [2]}),
    "in turn, held whole": ("gpt_oss", {"target_modules": ["experts.gate", "experts.down"]}),
}


@pytest.mark.parametrize(("family", "options"), CASES.values(), ids=list(CASES))
def test_outputs_are_those_of_base_and_adapter(
    family: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tiny._CONFIGS, family, ("decoder", family_config(family)))
    run = make_run(tmp_path, family, "causal_lm", {"name": "lora", **options}, base_class="causal_lm")
    report = merge_run(run, tmp_path / "merged", use_alone=False)
    assert report.verified and report.agreement == 1.0
    assert report.max_abs_diff is not None and report.max_abs_diff < 2e-5
    assert report.adapter_effect is None or report.adapter_effect > 10 * report.max_abs_diff
    before, after = (load_file(tmp_path / folder / "model.safetensors") for folder in ("model", "merged"))
    assert {name: tensor.shape for name, tensor in before.items()} == {
        name: tensor.shape for name, tensor in after.items()
    }
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    inside = {name for name in changed if "experts" in name}
    assert inside and report.changed >= len(changed)
    if options.get("experts_to_transform") == [2]:
        assert changed == {f"model.layers.{layer}.block_sparse_moe.experts.2.w1.weight" for layer in (0, 1)}


def test_pieces_are_where_transformers_puts_them() -> None:
    model = tiny_model("mixtral")
    names = CheckpointNames(model)
    live = model.state_dict()
    for expert, matrix, part in ((0, "w1", 0), (3, "w3", 1), (2, "w2", 0)):
        found = names.of_file(f"model.layers.1.block_sparse_moe.experts.{expert}.{matrix}.weight")
        assert found is not None and found.piece is not None
        assert (found.piece.expert, found.piece.part, found.piece.parts) == (expert, part, 1 if matrix == "w2" else 2)
        assert found.piece.shape_in(live[found.live_name].shape) == ((32, 48) if matrix == "w2" else (48, 32))


@pytest.mark.parametrize(
    "method", [{"name": "ia3", "target_modules": ["experts.up"]}, {"name": "lora", "modules_to_save": ["mlp.experts"]}]
)
def test_a_view_of_the_adapter_reads_the_experts_from_their_pieces(method: dict[str, Any], tmp_path: Path) -> None:
    run = make_run(tmp_path, "mixtral", "causal_lm", method, base_class="causal_lm")
    view = view_adapter(run)
    rows = [row for row in view.rows if "gate_up_proj" in row.name]
    assert [row.layer for row in rows] == [0, 1] and all(row.relative and 0 < row.relative < 3 for row in rows)
    assert {row.role for row in rows} == ({"experts.up"} if method["name"] == "ia3" else {None})
