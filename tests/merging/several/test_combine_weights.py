"""Adapters of any methods combined by what they do to the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft.utils import merge_utils
from torch import Tensor

from peftcli.errors import UserError, VerificationFailed
from peftcli.merging.merge_run import merge_runs
from peftcli.merging.run_to_merge import open_run_to_merge
from peftcli.merging.several.combination import combination
from peftcli.merging.several.combine_runs import combine_runs
from peftcli.protocol.method import MergeRule
from tests.merging.runs import make_run

WEIGHTS = [0.9, -0.5]


def runs_of(folder: Path, *methods: dict[str, Any], family: str = "gpt2") -> list[Path]:
    """Return runs of several methods on equal bases."""
    return [
        make_run(folder / str(number), family, "causal_lm", method, base_class="causal_lm", seed=number)
        for number, method in enumerate(methods)
    ]


def changes(run: Any, base: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return what a run adds to each weight of a base."""
    return {name: rule.apply(base[name].clone()) - base[name] for name, rule in run.rules().items()}


def random_base(run: Any) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {name: torch.randn(value.shape, generator=generator) for name, value in run.model.named_parameters()}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (None, {}),
        ("ties", {"density": 0.5}),
        ("dare_ties_svd", {"density": 0.5, "rank": 4}),
        ("magnitude_prune", {"density": 0.5}),
        ("svd", {"rank": 3}),
    ],
)
def test_whole_changes_are_combined_by_the_papers_arithmetic(
    kind: str | None, options: dict[str, Any], tmp_path: Path
) -> None:
    opened = [
        open_run_to_merge(run, None)
        for run in runs_of(tmp_path, {"name": "ia3"}, {"name": "lora", "bias": "all"}, family="gpt2")
    ]
    base = random_base(opened[0])
    how = combination(kind, WEIGHTS, 2, **options)
    found = changes(combine_runs(opened, how), base)
    parts = [changes(run, base) for run in opened]
    assert set(found) == set(parts[0]) | set(parts[1])
    for name, change in found.items():
        own = [(part[name], weight) for part, weight in zip(parts, WEIGHTS, strict=True) if name in part]
        tensors, weights = [tensor for tensor, _ in own], torch.tensor([weight for _, weight in own])
        if kind == "ties":
            expected = merge_utils.ties(tensors, weights, 0.5)
        elif kind == "magnitude_prune":
            expected = merge_utils.magnitude_prune(tensors, weights, 0.5)
        elif kind == "dare_ties_svd":
            from peftcli.merging.several.combine_tensors import draws_of

            torch.manual_seed(draws_of(name, 0).initial_seed())
            expected = merge_utils.dare_ties(tensors, weights, 0.5)
        else:
            expected = merge_utils.task_arithmetic(tensors, weights)
        if how.rank and expected.ndim == 2:
            left, values, right = torch.linalg.svd(expected, full_matrices=False)
            expected = (left[:, : how.rank] * values[: how.rank]) @ right[: how.rank]
        torch.testing.assert_close(change, expected, atol=2e-5, rtol=1e-4, msg=name)


def test_what_was_trained_whole_and_changed_is_combined_as_one_change(tmp_path: Path) -> None:
    method = {"name": "hira", "target_modules": ["attn.q", "lm_head"], "modules_to_save": ["lm_head"]}
    opened = [open_run_to_merge(run, None) for run in runs_of(tmp_path, method, method, family="llama")]
    base = random_base(opened[0])
    parts = [changes(run, base)["lm_head.weight"] for run in opened]
    found = changes(combine_runs(opened, combination(None, WEIGHTS, 2)), base)["lm_head.weight"]
    torch.testing.assert_close(found, WEIGHTS[0] * parts[0] + WEIGHTS[1] * parts[1], atol=2e-5, rtol=1e-4)
    for run, part in zip(opened, parts, strict=True):
        assert run.adapter is not None
        state, name = run.adapter.state, "lm_head.weight"
        factor = state["lm_head.hira_B"] @ state["lm_head.hira_A"]
        torch.testing.assert_close(part, state[name] * (1 + factor) - base[name], atol=2e-5, rtol=1e-4)


def test_a_merged_model_of_several_methods_is_verified(tmp_path: Path) -> None:
    methods: list[dict[str, Any]] = [{"name": "lora", "use_dora": True}, {"name": "hira"}, {"name": "ln_tuning"}]
    runs = runs_of(tmp_path, *methods, family="llama")
    how = combination("ties", [1.0, 0.5, 1.0], 3, density=0.8)
    report = merge_runs(runs, tmp_path / "merged", how=how)
    assert report.verified and report.method == "lora + hira + ln_tuning" and report.adapter_effect
    assert any("ties, density 0.8, signs by total of 3 adapters" in note for note in report.notes)


def test_a_rule_that_is_not_its_adapter_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from peftcli.methods.ia3 import IA3Method

    runs = runs_of(tmp_path, {"name": "ia3"}, {"name": "ia3"}, family="llama")
    rules = IA3Method.merge_rules

    def wrong(*arguments: Any) -> dict[str, MergeRule]:
        found = rules(*arguments)
        return {name: MergeRule(lambda base, own=rule: own.apply(base) * 1.5) for name, rule in found.items()}

    monkeypatch.setattr(IA3Method, "merge_rules", wrong)
    with pytest.raises(VerificationFailed, match="differs from its adapter"):
        merge_runs(runs, tmp_path / "merged", use_alone=False, how=combination(None, [0.5, 0.5], 2))
    assert not (tmp_path / "merged").exists()


def test_what_does_not_go_with_a_method_is_refused(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, {"name": "ia3"}, {"name": "lora"}, {"name": "prefix_tuning"}, family="llama")
    opened = [open_run_to_merge(run, None) for run in runs[:2]]
    for kind, message, remedy in (
        ("cat", "cat puts LoRA factors side by side, and ia3 has no LoRA factors", "--combination-type linear"),
        ("svd", "needs a rank", "--rank 16"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            combine_runs(opened, combination(kind, [1.0, 1.0], 2))
        assert remedy in str(caught.value.problems[0].suggestion)
    with pytest.raises(UserError, match="prefix_tuning cannot be merged"):
        merge_runs(runs[1:], tmp_path / "merged", how=combination(None, [1.0, 1.0], 2))


def test_vocabularies_must_agree(tmp_path: Path) -> None:
    opened = [open_run_to_merge(run, None) for run in runs_of(tmp_path, {"name": "lora"}, {"name": "lora"})]
    opened[1].tokenizer.add_tokens(["<new>"])
    with pytest.raises(UserError, match="differ in added tokens"):
        combine_runs(opened, combination(None, [1.0, 1.0], 2))
