"""Models that carry rounding far merge as others do; a wrong merge of them is found.

Sharp attention makes such models (tiny ones of Gemma 4 with random weights are). How far it carries rounding depends on
the processor, so that here the tolerance is what is small.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from peftcli.errors import VerificationFailed
from peftcli.merging.compare_outputs import TIMES_ROUNDING, TOLERANCE, allowing_rounding, compare
from peftcli.merging.merge_run import merge_run
from tests.merging.runs import leave_out_a_rule, make_run

METHODS = {
    "lora": {"name": "lora", "r": 4},
    "composed": {"name": "compose", "parts": [{"name": "ia3"}, {"name": "lora", "r": 4}]},
}


@pytest.fixture(autouse=True)
def _no_tolerance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TOLERANCE, torch.float32, 1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_a_model_that_carries_rounding_far_is_merged_and_says_so(tmp_path: Path, method: str) -> None:
    run = make_run(tmp_path, "llama", "causal_lm", METHODS[method], base_class="causal_lm")
    report = merge_run(run, tmp_path / "merged")
    assert report.verified and [note for note in report.notes if "amplifies rounding errors" in note]
    assert report.tolerance is not None and report.max_abs_diff is not None
    assert report.max_abs_diff <= report.tolerance


def test_a_wrong_merge_of_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path, "llama", "causal_lm", METHODS["lora"], base_class="causal_lm")
    leave_out_a_rule(monkeypatch)
    with pytest.raises(VerificationFailed, match="more than rounding separates them"):
        merge_run(run, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_tolerance_grows_with_what_rounding_does_and_no_further() -> None:
    ours, merged = torch.zeros(4, 8), torch.full((4, 8), 1e-4)
    found = compare(ours, merged, torch.float32)
    assert not found.within
    calm, wild = (compare(merged, merged + size, torch.float32) for size in (1e-8, 1e-4 / TIMES_ROUNDING + 1e-6))
    assert not found.beside(calm).within
    assert found.beside(wild).within and found.beside(wild).rounding == pytest.approx(1e-4 / TIMES_ROUNDING, rel=0.2)


def test_several_labels_agree_where_all_of_them_do() -> None:
    """The largest logit is no prediction of a row that can have several labels."""
    ours, merged = torch.tensor([[3.0, 1.0], [-1.0, -2.0]]), torch.tensor([[3.0, -1.0], [-2.0, -1.0]])
    assert compare(ours, merged, torch.float32).agreement == 0.5
    assert compare(ours, merged, torch.float32, several=True).agreement == 0.5
    assert compare(ours, -merged, torch.float32, several=True).agreement == 0.0
    assert compare(ours[:1], merged[:1], torch.float32).agreement == 1.0
    assert compare(ours[:1], merged[:1], torch.float32, several=True).agreement == 0.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_allowed_nothing_more(dtype: torch.dtype) -> None:
    ours, merged = torch.zeros(4, 8), torch.ones(4, 8)
    found = compare(ours, merged, dtype)
    assert allowing_rounding(found, dtype, merged, lambda: merged + 1) == found and not found.within


def test_outputs_that_rounding_makes_infinite_allow_nothing() -> None:
    ours, merged = torch.zeros(4, 8), torch.ones(4, 8)
    found = compare(ours, merged, torch.float32)
    assert not allowing_rounding(found, torch.float32, merged, lambda: merged * torch.inf).within
