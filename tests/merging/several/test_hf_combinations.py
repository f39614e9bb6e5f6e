"""HF peft's `add_weighted_adapter` as the oracle: the same adapters, the same change of every weight.

dare draws: each matrix's shares come from a seed of its own, so HF peft is given that seed before each matrix.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peftcli.adapters.transfer import export_run
from peftcli.errors import UserError
from peftcli.merging.run_to_merge import open_run_to_merge
from peftcli.merging.several.combination import TYPES, Combination, combination
from peftcli.merging.several.combine_runs import combine_runs
from peftcli.merging.several.combine_tensors import draws_of
from tests.merging.several.test_combine_runs import two_runs
from tests.tiny import tiny_model

CASES: list[tuple[str, dict[str, Any]]] = [
    ("cat", {}),
    ("linear", {}),
    ("svd", {"rank": 3}),
    ("svd", {}),
    ("ties", {"density": 0.5}),
    ("ties", {"density": 0.7, "majority_sign_method": "frequency"}),
    ("ties_svd", {"density": 0.3, "rank": 6}),
    ("ties_svd", {"density": 0.3, "majority_sign_method": "frequency"}),
    ("dare_linear", {"density": 0.6}),
    ("dare_ties", {"density": 0.6, "seed": 5}),
    ("dare_linear_svd", {"density": 0.6, "rank": 5}),
    ("dare_ties_svd", {"density": 0.6, "majority_sign_method": "frequency"}),
    ("magnitude_prune", {"density": 0.4}),
    ("magnitude_prune_svd", {"density": 0.4, "rank": 5}),
]
WEIGHTS = (0.8, -0.4)
FIRST = {"r": 4, "target_modules": ["q_proj", "v_proj", "down_proj"], "lora_alpha": 8}
SECOND = {"r": 4, "target_modules": ["q_proj", "o_proj"], "use_rslora": True}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return two runs that share some projections."""
    one, two, _ = two_runs(tmp_path_factory.mktemp("hf"), "llama", "causal_lm", FIRST, SECOND)
    return one, two


@pytest.fixture(scope="module")
def theirs(runs: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return HF peft's model with both adapters."""
    from peft import PeftModel

    folder = tmp_path_factory.mktemp("exported")
    for name, run in zip(("one", "two"), runs, strict=True):
        export_run(run, folder / name, to="hf-peft")
    model = PeftModel.from_pretrained(tiny_model("llama"), str(folder / "one"), adapter_name="one")
    model.load_adapter(str(folder / "two"), adapter_name="two")
    return model


def test_every_type_is_here() -> None:
    assert {kind for kind, _ in CASES} == set(TYPES)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "options"), CASES)
def test_the_changes_are_those_of_hf_peft(
    kind: str, options: dict[str, Any], runs: tuple[Path, Path], theirs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = combination(kind, WEIGHTS, 2, **options)
    ours = changes_of(combine_runs([open_run_to_merge(run, None) for run in runs], how))
    _seed_each_matrix(theirs, how, monkeypatch)
    theirs.add_weighted_adapter(
        ["one", "two"],
        list(WEIGHTS),
        "both",
        combination_type=kind,
        svd_rank=how.rank,
        density=how.density,
        majority_sign_method=how.majority_sign_method,
    )
    found = {
        name.removeprefix("base_model.model."): module.get_delta_weight("both").detach()
        for name, module in theirs.named_modules()
        if hasattr(module, "lora_A") and "both" in module.lora_A
    }
    theirs.delete_adapter("both")
    assert found.keys() == ours.keys() and len(found) == 8
    for name, change in found.items():
        assert change.abs().max() > 1e-3
        torch.testing.assert_close(ours[name], change, atol=1e-5, rtol=1e-5)


def changes_of(run: Any) -> dict[str, Tensor]:
    """Return what a run adds to each weight of its base, by module."""
    shapes = dict(run.model.named_parameters())
    return {
        name.removesuffix(".weight"): rule.apply(torch.zeros(shapes[name].shape)) for name, rule in run.rules().items()
    }


def _seed_each_matrix(model: nn.Module, how: Combination, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let HF peft draw for each matrix from the seed that it has here."""
    tuner = model.base_model  # type: ignore[attr-defined]
    names = {id(module): name.removeprefix("base_model.model.") for name, module in model.named_modules()}
    suffix = "generalized_task_arithmetic_weighted_adapter"
    for method in (f"_{suffix}", f"_svd_{suffix}"):
        original = getattr(tuner, method)

        def seeded(*arguments: Any, original: Any = original, **words: Any) -> Any:
            module = next(argument for argument in arguments if isinstance(argument, nn.Module))
            torch.manual_seed(draws_of(names[id(module)], how.seed).initial_seed())
            return original(*arguments, **words)

        monkeypatch.setattr(tuner, method, seeded)


def test_dare_keeps_the_density_and_the_mean(runs: tuple[Path, Path]) -> None:
    from peftcli.merging.several.combine_tensors import keep_random_

    tensor = torch.ones(200, 200)
    keep_random_(tensor, 0.3, draws_of("x", 0))
    assert abs(float((tensor != 0).float().mean()) - 0.3) < 0.01 and abs(float(tensor.mean()) - 1.0) < 0.03
    how = combination("dare_linear_svd", WEIGHTS, 2, density=0.5)
    again, other = (
        changes_of(combine_runs([open_run_to_merge(run, None) for run in runs], each))
        for each in (how, combination("dare_linear_svd", WEIGHTS, 2, density=0.5, seed=1))
    )
    first = changes_of(combine_runs([open_run_to_merge(run, None) for run in runs], how))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("kind", ["linear", "ties", "dare_linear", "magnitude_prune"])
def test_factors_of_several_ranks_are_refused(kind: str, tmp_path: Path) -> None:
    one, two, _ = two_runs(tmp_path, "llama", "causal_lm", {"r": 4}, {"r": 2})
    density = None if kind == "linear" else 0.5
    opened = [open_run_to_merge(run, None) for run in (one, two)]
    with pytest.raises(UserError, match=r"have the ranks 4, 2 at .*") as caught:
        combine_runs(opened, combination(kind, [1.0, 1.0], 2, density=density))
    remedy = "cat" if kind == "linear" else f"{kind}_svd"
    assert f"--combination-type {remedy}," in str(caught.value.problems[0].suggestion)
