"""A merge without its adapter is never called verified, however much the tolerance of half precision allows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from peftcli.errors import VerificationFailed
from peftcli.merging import merge_run as merging
from peftcli.merging import module_effects, verify_merge
from peftcli.merging.carried_effect import CarriedEffect, carried_effect
from peftcli.merging.compare_outputs import Comparison
from peftcli.merging.merge_report import MergeReport
from peftcli.merging.merge_run import merge_run
from peftcli.merging.run_to_merge import RunToMerge
from peftcli.merging.verify_merge import judge
from peftcli.protocol.method import MergeRule
from tests.merging.runs import make_run

LORA = {"name": "lora", "r": 4}
SMALL = {"bfloat16": 0.005, "float16": 0.001}
"""Spread of an adapter's values whose effect is below the tolerance of a type."""


def test_rounding_hides_no_effect_and_is_none() -> None:
    draws = torch.Generator().manual_seed(0)
    plain, change, noise = (torch.randn(64, 96, generator=draws) for _ in range(3))
    adapted, rounded = plain + 0.1 * change, 0.3 * noise
    found = {
        share: carried_effect(plain, adapted, plain + share * 0.1 * change + rounded) for share in (0.0, 0.4, 1.0, 2.0)
    }
    assert [round(one.carried or 0.0, 1) for one in found.values()] == [0.0, 0.4, 1.0, 2.0]
    assert [one.lost for one in found.values()] == [True, True, False, True]
    nothing = carried_effect(plain, plain, plain + rounded)
    assert nothing.carried is None and nothing.silent and nothing.size == 0.0


@pytest.mark.parametrize("size", [1e-3, 1e-2])
def test_an_effect_below_what_rounding_does_in_a_model_decides_nothing(size: float) -> None:
    """Such a model's outputs scatter by more than the adapter does, in any direction."""
    scattered = Comparison(0.02, 1e-4, 1.0, tolerance=0.05, mean_tolerance=0.0125, rounding=5e-3)
    report, effect = MergeReport("merged", "float32", "lora", 1, 2, 3), CarriedEffect(size, 0.2, False)
    if size > 5e-3:
        with pytest.raises(VerificationFailed, match="has 20% of the adapter's effect"):
            judge(scattered, effect, report)
    else:
        judge(scattered, effect, report)
        assert report.verified and "cannot tell the merged model from the base" in report.notes[0]


def change_rules(monkeypatch: pytest.MonkeyPatch, factor: float, only: str = "") -> None:
    """Make merges wrong: what is written has `factor` times the change of each tensor with `only` in its name."""
    real = merging.plan_merge

    def scaled(rule: MergeRule) -> MergeRule:
        def apply(base: torch.Tensor | None) -> torch.Tensor:
            assert base is not None
            return base + factor * (rule.apply(base.clone()) - base)

        return MergeRule(apply)

    def plan(model: Any, stored: Any, rules: dict[str, MergeRule], dtype: Any, **words: Any) -> Any:
        return real(model, stored, {k: scaled(r) if only in k else r for k, r in rules.items()}, dtype, **words)

    monkeypatch.setattr(merging, "plan_merge", plan)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("factor", [0.0, 2.0])
def test_half_precision_does_not_verify_a_merge_without_its_adapter(
    dtype: str, factor: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path, "llama", "causal_lm", LORA, base_class="causal_lm", size=SMALL[dtype])
    good = merge_run(run, tmp_path / "good", dtype=dtype, use_alone=False)
    assert good.verified and good.carried == pytest.approx(1.0, abs=0.2)
    assert good.adapter_effect is not None and good.tolerance is not None and good.adapter_effect < good.tolerance / 4
    change_rules(monkeypatch, factor)
    with pytest.raises(VerificationFailed, match=r"has (-?\d+% of the adapter's effect|\d+% of the adapter's change)"):
        merge_run(run, tmp_path / "merged", dtype=dtype, use_alone=False)
    assert not (tmp_path / "merged").exists()


def test_a_wrong_change_of_one_module_shows_before_it_is_rounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The computed change is compared in float32 where this machine computes in it anyway."""
    run = make_run(tmp_path, "llama", "causal_lm", LORA, base_class="causal_lm", size=SMALL["bfloat16"])
    real = RunToMerge.rules

    def without_one(self: RunToMerge) -> dict[str, MergeRule]:
        rules = real(self)
        rules.popitem()
        return rules

    monkeypatch.setattr(RunToMerge, "rules", without_one)
    monkeypatch.setattr("peftcli.merging.compare_outputs.computes_well", lambda dtype, device: False)
    with pytest.raises(VerificationFailed, match="the weight change that was computed"):
        merge_run(run, tmp_path / "merged", dtype="bfloat16", use_alone=False)


METHODS: dict[str, dict[str, Any]] = {
    "lora": LORA,
    "dora": LORA | {"use_dora": True},
    "ia3": {"name": "ia3"},
    "oft": {"name": "oft", "oft_block_size": 4},
    "vera": {"name": "vera", "r": 4},
    "bitfit": {"name": "bitfit"},
    "composed": {"name": "compose", "parts": [{"name": "ia3"}, LORA]},
}


@pytest.mark.parametrize("factor", [0.0, 2.0])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_one_projection_of_many_is_not_lost_unseen(
    family: str, factor: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All outputs together had nearly all of the effect, within the tolerance of half precision."""
    run = make_run(tmp_path, family, "causal_lm", LORA, base_class="causal_lm", size=SMALL["bfloat16"])
    change_rules(monkeypatch, factor, only={"llama": "1.self_attn.v_proj", "gpt2": "h.1.attn.c_attn"}[family])
    with pytest.raises(VerificationFailed, match=rf"1\S+ of the merged model has {factor:.0%} of the adapter's change"):
        merge_run(run, tmp_path / "merged", dtype="bfloat16", use_alone=False)
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_projections_have_what_every_method_changes_of_them(
    family: str, method: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    real = module_effects.lost_changes

    def looked(effects: Any, merged: Any, planned: Any) -> Any:
        outputs = module_effects.module_outputs(merged, effects.plain)
        found.extend(effects.share(name, value) for name, value in outputs.items())
        return real(effects, merged, planned)

    monkeypatch.setattr(verify_merge, "lost_changes", looked)
    if (family, method) == ("llama", "bitfit"):
        family = "qwen2"  # Llama has no biases
    run = make_run(tmp_path, family, "causal_lm", METHODS[method], base_class="causal_lm")
    report = merge_run(run, tmp_path / "merged", dtype=dtype, use_alone=False)
    assert report.verified and not any("took most" in note for note in report.notes)
    known = [share for share in found if share is not None]
    assert known and all(abs(share - 1) < (0.02 if dtype == "float32" else 0.3) for share in known)


def test_rounding_that_takes_a_change_is_told_and_no_fault(tmp_path: Path) -> None:
    """The base is in bfloat16, so that a change below half a step leaves its numbers as they are."""
    run = make_run(tmp_path, "llama", "causal_lm", LORA, base_class="causal_lm", size=1e-5, dtype=torch.bfloat16)
    with pytest.raises(VerificationFailed) as caught:
        merge_run(run, tmp_path / "merged", use_alone=False)
    text = str(caught.value)
    assert "rounding to bfloat16 took most of the changes of 4 of 4 projections" in text and "--dtype float32" in text
    report = merge_run(run, tmp_path / "exact", dtype="float32", use_alone=False)
    assert report.verified and report.carried == pytest.approx(1.0, abs=5e-2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", [LORA, {"name": "bitfit"}], ids=["lora", "bitfit"])
def test_an_adapter_that_changes_nothing_shows_nothing(method: dict[str, Any], dtype: str, tmp_path: Path) -> None:
    run = make_run(tmp_path, "gpt2", "causal_lm", method, base_class="causal_lm", size=0.0)
    report = merge_run(run, tmp_path / "merged", use_alone=False, dtype=dtype)
    assert report.verified == (dtype == "float32") and report.carried is None and report.adapter_effect == 0.0
    assert any("cannot tell the merged model from the base" in note for note in report.notes)
    card = (tmp_path / "merged" / "README.md").read_text(encoding="utf-8")
    assert ("Not verified: see the notes." in card) == (dtype == "bfloat16")


@pytest.mark.parametrize(
    "method",
    [{"name": "bitfit"}, LORA | {"bias": "all"}, LORA | {"modules_to_save": ["transformer.h.0.ln_1"]}],
    ids=["bitfit", "biases", "modules_to_save"],
)
def test_the_effect_counts_what_is_trained_of_the_base(method: dict[str, Any], tmp_path: Path) -> None:
    run = make_run(tmp_path, "gpt2", "causal_lm", method, base_class="causal_lm")
    report = merge_run(run, tmp_path / "merged", use_alone=False)
    assert report.verified and report.carried == pytest.approx(1.0, abs=1e-2)
