"""Several runs as one adapter: a run that is verified, trained on, exported and merged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from peftcli.adapters.loading import load_adapter
from peftcli.errors import UserError, VerificationFailed
from peftcli.merging.run_to_merge import open_run_to_merge
from peftcli.merging.several.adapter_run import combine_to_adapter
from peftcli.merging.several.combination import combination
from peftcli.methods.lora import LoraParams
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
