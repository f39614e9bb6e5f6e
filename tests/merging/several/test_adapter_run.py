"""Several runs as one adapter: a run that is verified, trained on, exported and merged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from peftcli.adapters.loading import load_adapter
from peftcli.adapters.transfer import export_run
from peftcli.errors import UserError, VerificationFailed
from peftcli.merging.run_to_merge import open_run_to_merge
from peftcli.merging.several.adapter_run import combine_to_adapter
from peftcli.merging.several.combination import combination
from peftcli.merging.several.combine_runs import combine_runs
from peftcli.methods.lora import LoraParams
from peftcli.names import NAMES
from peftcli.recipe.load_recipe import load_recipe
from peftcli.training.run import train
from tests.merging.runs import make_run
from tests.merging.several.test_combine_runs import two_runs
from tests.merging.several.test_combine_weights import changes, random_base, runs_of


def test_the_exact_sum_is_a_run_with_a_lora(tmp_path: Path) -> None:
    one, two, _ = two_runs(tmp_path, "llama", "causal_lm", {"r": 4}, {"r": 2, "target_modules": ["attn.k", "attn.q"]})
    report = combine_to_adapter([one, two], tmp_path / "both", combination(None, [0.7, -0.3], 2))
    assert report.verified and report.adapter and report.size > 0
    opened = [open_run_to_merge(run, None) for run in (one, two, tmp_path / "both")]
    base = random_base(opened[0])
    first, second, both = (changes(run, base) for run in opened)
    for name, change in both.items():
        parts = [weight * part[name] for weight, part in ((0.7, first), (-0.3, second)) if name in part]
        torch.testing.assert_close(change, torch.stack(parts).sum(0), atol=2e-6, rtol=1e-4)


def test_training_goes_on_from_the_run_and_hf_peft_gets_it(tmp_path: Path) -> None:
    one, two, _ = two_runs(tmp_path, "llama", "causal_lm", {"r": 4}, {"r": 2})
    both = tmp_path / "both"
    combine_to_adapter([one, two], both, combination(None, [0.5, 0.5], 2), verify=False)
    saved = load_adapter(both / "adapter")
    assert isinstance(saved.params, LoraParams)
    exported = export_run(both, tmp_path / "exported", to="hf-peft")
    assert exported.kind == "hf-peft"
    for name, value in load_adapter(tmp_path / "exported").state.items():
        torch.testing.assert_close(value, saved.state[name])
    method = {"name": "lora", "r": saved.params.r, "lora_alpha": saved.params.r, "init_from": str(both)}
    recipe = {**yaml.safe_load((one / "recipe.yaml").read_text()), "output_dir": str(tmp_path / "longer")}
    recipe |= {"method": method, "training": {"max_steps": 1, "learning_rate": 1e-9}}
    (tmp_path / "longer.yaml").write_text(yaml.safe_dump(recipe))
    train(load_recipe(str(tmp_path / "longer.yaml"), [], NAMES))
    for name, value in load_adapter(tmp_path / "longer/adapter").state.items():
        torch.testing.assert_close(value, saved.state[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize("second", ["lora", "ia3"])
def test_a_rank_above_that_of_a_change_is_told(second: str, tmp_path: Path) -> None:
    """Of the factors two of rank 4; of the weights, matrices whose shorter side is 32."""
    options = {} if second == "ia3" else {"r": 4}
    runs = [
        open_run_to_merge(run, None) for run in runs_of(tmp_path, {"name": "lora", "r": 4}, {"name": second, **options})
    ]
    limit = 32 if second == "ia3" else 8
    told = combine_runs(runs, combination(None, [1.0, 1.0], 2, rank=limit + 1)).notes
    assert any(f"rank {limit + 1} is above that of" in note and f"({limit} at " in note for note in told), told
    told = combine_runs(runs, combination(None, [1.0, 1.0], 2, rank=limit)).notes
    assert not any("is above that of" in note for note in told)


def test_other_methods_need_a_rank(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, {"name": "hira"}, {"name": "lora"}, family="llama")
    with pytest.raises(UserError, match="has full rank") as caught:
        combine_to_adapter(runs, tmp_path / "both", combination("ties", [1.0, 1.0], 2, 0.5))
    assert "--rank 16" in str(caught.value.problems[0].suggestion) and not (tmp_path / "both").exists()
    combine_to_adapter(runs, tmp_path / "both", combination("ties_svd", [1.0, 1.0], 2, 0.5, rank=6))
    params = load_adapter(tmp_path / "both/adapter").params
    assert isinstance(params, LoraParams) and params.r == 6


def test_what_is_written_wrong_does_not_appear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from peftcli.merging.several import combine_factors

    one, two, _ = two_runs(tmp_path, "llama", "causal_lm", {"r": 4}, {"r": 4})
    monkeypatch.setattr(combine_factors, "compressed", lambda a, b, _rank: (a, 1.5 * b))
    with pytest.raises(VerificationFailed):
        combine_to_adapter([one, two], tmp_path / "both", combination(None, [1.0, 1.0], 2))
    assert not (tmp_path / "both").exists()


def test_runs_of_loftq_are_refused(tmp_path: Path) -> None:
    """Their initial pair is taken off the unquantised base, and the new run is on the quantised one."""
    method = {"name": "lora", "r": 4, "init_lora_weights": "loftq"}
    sizes = {"hidden_size": 64, "intermediate_size": 128}
    run = make_run(tmp_path, "llama", "causal_lm", method, base_class="causal_lm", load_in_4bit=True, config=sizes)
    with pytest.raises(UserError, match="what quantisation took from its base"):
        combine_to_adapter([run, run], tmp_path / "both", combination(None, [0.5, 0.5], 2))
    assert not (tmp_path / "both").exists()
