"""Several LoRA adapters merged as one: the weighted sum of their changes, exact or cut to a rank."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from peftcli.errors import UserError
from peftcli.merging.merge_run import merge_run, merge_runs
from peftcli.merging.several.combination import Combination, combination
from tests.merging.runs import make_run


def how(weights: list[float], kind: str | None = None, **options: Any) -> Combination:
    """Return a combination, checked as the command checks it."""
    return combination(kind, weights, len(weights), **options)


def two_runs(
    folder: Path, family: str, task: str, first: dict[str, Any], second: dict[str, Any]
) -> tuple[Path, Path, dict[str, torch.Tensor]]:
    """Return two runs on one base, and the base's tensors."""
    base_class = "base" if task == "sequence_classification" else task
    one = make_run(folder / "one", family, task, {"name": "lora", **first}, base_class=base_class)
    two = make_run(folder / "two", family, task, {"name": "lora", **second}, base_class=base_class, seed=11)
    text = (two / "recipe.yaml").read_text()
    (two / "recipe.yaml").write_text(text.replace(str(folder / "two" / "model"), str(folder / "one" / "model")))
    shutil.rmtree(folder / "two" / "model")
    return one, two, load_file(folder / "one/model/model.safetensors")


def merged_changes(folder: Path, base: dict[str, torch.Tensor], *runs: Path, **options: Any) -> dict[str, torch.Tensor]:
    """Return what merging some runs adds to the base."""
    output = folder / f"merged-{len(list(folder.glob('merged-*')))}"
    if len(runs) == 1:
        merge_run(runs[0], output, use_alone=False, verify=False)
    else:
        report = merge_runs(runs, output, use_alone=False, how=how(**options))
        assert report.verified
    after = load_file(output / "model.safetensors")
    return {name: after[name] - tensor for name, tensor in base.items() if name in after}


@pytest.mark.parametrize(
    ("family", "first", "second"),
    [
        ("llama", {"r": 4}, {"r": 2, "target_modules": ["attn.k", "attn.q", "ffn.up"], "lora_alpha": 8}),
        ("gpt2", {"r": 4}, {"r": 4, "target_modules": ["attn.q", "ffn.down"], "use_rslora": True}),
        ("llama", {"r": 4, "init_lora_weights": "pissa"}, {"r": 4}),
        ("llama", {"r": 16}, {"r": 16}),  # together more than the matrices have
        ("gpt2", {"r": 4, "target_modules": ["embeddings", "attn.q"]}, {"r": 4}),
    ],
)
def test_the_sum_of_the_changes_is_exact(
    family: str, first: dict[str, Any], second: dict[str, Any], tmp_path: Path
) -> None:
    one, two, base = two_runs(tmp_path, family, "causal_lm", first, second)
    of_one, of_two = (merged_changes(tmp_path, base, run) for run in (one, two))
    together = merged_changes(tmp_path, base, one, two, weights=[0.7, -0.3])
    for name, change in together.items():
        torch.testing.assert_close(change, 0.7 * of_one[name] - 0.3 * of_two[name], atol=2e-6, rtol=1e-4)


def test_the_cut_to_a_rank_is_the_best_one(tmp_path: Path) -> None:
    one, two, base = two_runs(tmp_path, "llama", "causal_lm", {"r": 4}, {"r": 4})
    exact = merged_changes(tmp_path, base, one, two, weights=[1.0, 1.0])
    cut = merged_changes(tmp_path, base, one, two, weights=[1.0, 1.0], rank=3)
    name = "model.layers.1.self_attn.q_proj.weight"
    left, values, right = torch.linalg.svd(exact[name])
    best = left[:, :3] @ torch.diag(values[:3]) @ right[:3]
    torch.testing.assert_close(cut[name], best, atol=1e-5, rtol=1e-4)


def test_heads_are_averaged(tmp_path: Path) -> None:
    one, two, _ = two_runs(tmp_path, "bert", "sequence_classification", {"r": 4}, {"r": 4})
    report = merge_runs([one, two], tmp_path / "merged", use_alone=False, how=how([3.0, 1.0]))
    assert report.verified and any("the sum of 2 adapters" in note for note in report.notes)
    heads = [load_file(run / "adapter/adapter_model.safetensors") for run in (one, two)]
    own, other = (next(value for key, value in head.items() if key.endswith("classifier.weight")) for head in heads)
    merged = load_file(tmp_path / "merged/model.safetensors")["classifier.weight"]
    torch.testing.assert_close(merged, 0.75 * own + 0.25 * other)


@pytest.mark.parametrize(
    ("second", "weights", "message"),
    [
        ({"r": 4}, [1.0], "2 runs and 1 weights"),
        ({"r": 4}, [0.0, 0.0], "not all of them zero"),
        ({"r": 4, "modules_to_save": ["norm"]}, [1.0, 1.0], "different modules whole"),
    ],
)
def test_what_cannot_be_summed_is_refused(
    second: dict[str, Any], weights: list[float], message: str, tmp_path: Path
) -> None:
    one, two, _ = two_runs(tmp_path, "llama", "causal_lm", {"r": 4}, second)
    with pytest.raises(UserError, match=message):
        merge_runs([one, two], tmp_path / "merged", use_alone=False, how=combination(None, weights, 2))
    assert not (tmp_path / "merged").exists()


def test_bases_are_compared_by_their_files_not_by_name(tmp_path: Path) -> None:
    changes = {"one": {}, "copy": {}, "other": {"rope_theta": 5.0}}
    one, copy, other = (
        make_run(tmp_path / name, "llama", "causal_lm", {"name": "lora"}, base_class="causal_lm", config=config)
        for name, config in changes.items()
    )
    assert merge_runs([one, copy], tmp_path / "merged", use_alone=False, how=how([1.0, 1.0])).verified
    recipe = other / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace(str(tmp_path / "other"), str(tmp_path / "one")))  # of one name
    with pytest.raises(UserError, match=r"differ in base: .* whose files changed in between"):
        merge_runs([one, other], tmp_path / "again", use_alone=False, how=how([1.0, 1.0]))
