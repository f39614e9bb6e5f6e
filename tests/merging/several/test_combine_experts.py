"""Several adapters of experts in one merge: by factors of each expert, and by the weights, whole or in pieces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from peftcli.adapters.loading import load_adapter, run_adapter
from peftcli.errors import UserError
from peftcli.merging.several.adapter_run import combine_to_adapter
from tests import tiny
from tests.merging.several.test_combine_runs import how, merged_changes, two_runs
from tests.models.experts.tiny_experts import family_config

WHOLE = {"target_modules": ["experts", "attn.q"], "r": 2}
SOME = {"target_modules": ["experts"], "experts_to_transform": [1, 3], "r": 3, "lora_alpha": 8}
ROLES = {"target_modules": ["experts.up", "experts.down"], "r": 2, "use_rslora": True}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "lora, all and some": ("mixtral", WHOLE, SOME),
    "lora, some and others": ("gpt_oss", SOME, {**SOME, "experts_to_transform": [0]}),
    "lora, roles": ("qwen3_moe", ROLES, {**ROLES, "target_modules": ["experts.gate", "attn.v"]}),
    "beside ia3": ("mixtral", WHOLE, {"name": "ia3", "target_modules": ["experts", "attn.k"]}),
    "dora": ("mixtral", {**ROLES, "use_dora": True}, ROLES),
}


@pytest.fixture(autouse=True)
def _families(monkeypatch: pytest.MonkeyPatch) -> None:
    for family in ("mixtral", "qwen3_moe", "gpt_oss"):
        monkeypatch.setitem(tiny._CONFIGS, family, ("decoder", family_config(family)))


@pytest.mark.parametrize(("family", "first", "second"), CASES.values(), ids=list(CASES))
def test_the_sum_of_the_changes_is_exact(
    family: str, first: dict[str, Any], second: dict[str, Any], tmp_path: Path
) -> None:
    one, two, base = two_runs(tmp_path, family, "causal_lm", first, second)
    of_one, of_two = (merged_changes(tmp_path, base, run) for run in (one, two))
    together = merged_changes(tmp_path, base, one, two, weights=[0.7, -0.3])
    assert any("experts" in name and change.abs().max() > 0 for name, change in together.items())
    for name, change in together.items():
        torch.testing.assert_close(change, 0.7 * of_one[name] - 0.3 * of_two[name], atol=2e-6, rtol=1e-4)


def test_each_expert_is_cut_to_its_own_best_rank(tmp_path: Path) -> None:
    one, two, base = two_runs(tmp_path, "gpt_oss", "causal_lm", WHOLE, WHOLE)
    exact = merged_changes(tmp_path, base, one, two, weights=[1.0, 1.0])
    cut = merged_changes(tmp_path, base, one, two, weights=[1.0, 1.0], rank=3)
    name = "model.layers.1.mlp.experts.down_proj"
    for wanted, found in zip(exact[name], cut[name], strict=True):
        left, values, right = torch.linalg.svd(wanted)
        torch.testing.assert_close(found, left[:, :3] @ torch.diag(values[:3]) @ right[:3], atol=1e-5, rtol=1e-4)


def test_an_adapter_of_both_changes_the_experts_of_both(tmp_path: Path) -> None:
    one, two, _ = two_runs(tmp_path, "mixtral", "causal_lm", SOME, {**SOME, "experts_to_transform": [0]})
    report = combine_to_adapter([one, two], tmp_path / "sum", how([1.0, 0.5]))
    assert report.verified
    saved = load_adapter(run_adapter(tmp_path / "sum"))
    assert saved.params.experts_to_transform == [0, 1, 3]  # type: ignore[attr-defined]
    assert saved.state["model.layers.0.mlp.experts.down_proj.lora_A.weight"].shape == (3 * 3, 48)


@pytest.mark.parametrize(
    ("family", "whole", "roles"),
    [("mixtral", WHOLE, ROLES), ("gpt2", {"target_modules": ["c_attn"]}, {"target_modules": ["attn.q"]})],
)
def test_a_whole_projection_and_a_role_of_it_are_summed_by_the_weights(
    family: str, whole: dict[str, Any], roles: dict[str, Any], tmp_path: Path
) -> None:
    one, two, base = two_runs(tmp_path, family, "causal_lm", whole, roles)
    of_one, of_two = (merged_changes(tmp_path, base, run) for run in (one, two))
    for name, change in merged_changes(tmp_path, base, one, two, weights=[1.0, 1.0]).items():
        torch.testing.assert_close(change, of_one[name] + of_two[name], atol=2e-6, rtol=1e-4)
    with pytest.raises(UserError, match=r"is a part of .* which another run changes whole"):
        merged_changes(tmp_path, base, one, two, weights=[1.0, 1.0], kind="cat")
