"""The rows of a comparison from the results of its trials, whatever ended how."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from peftcli.console.study_views.compare_request import CompareRequest, read_request
from peftcli.errors import UserError
from peftcli.inference.row_scores import RowScores
from peftcli.studies.compare.compared_rows import compared_method
from peftcli.studies.compare.kept_scores import kept_scores, trial_scores
from peftcli.studies.compare.phases import Found
from peftcli.studies.engine.trial import CurvePoint, TrialResult

CURVE = (CurvePoint(0, {"eval_loss": 1.0}), CurvePoint(4, {"eval_loss": 0.5}))
SUMMARY: dict[str, Any] = {"trainable": 5, "saved": 3, "total": 100, "tokens_per_second": 6.0, "train_runtime": 2.0,
                           "eval": {"eval_loss": 0.4}, "eval_before": {"eval_loss": 1.0}}  # fmt: skip


def finished(**changes: Any) -> TrialResult:
    return TrialResult("one", "finished", summary=SUMMARY | changes, curve=CURVE, run="trials/one")


def test_every_way_to_end_is_a_row_with_its_reason(workspace, tmp_path: Path) -> None:
    request = CompareRequest(
        paths=[workspace.recipe("ended")], overrides=[], methods="lora,bitfit,ia3,full", budget=None, rates=3, seeds=3,
        jobs=1, reference="none", metric=None, storage=None, output=None, trust_code=False, command="peft",
    )  # fmt: skip
    lost = TrialResult("one", "diverged", "the loss is not finite", summary={"trainable": 5, "total": 100})
    found = Found(
        timing={
            "lora": TrialResult("one", "finished", summary=SUMMARY, peak_memory_bytes=7),
            "bitfit": TrialResult("one", "refused", "no biases"),
            "ia3": lost,
            "full": TrialResult("one", "failed", "killed three times"),
        },
        rates={
            "lora": {1e-3: finished(), 3e-3: TrialResult("one", "stopped", curve=CURVE)},
            "ia3": {1e-3: lost, 3e-4: lost},
        },
        chosen={"lora": 1e-3},
        scores={"lora": [finished(), lost, finished(tokens_per_second=8.0)]},
        seeds=[1, 2, 3],
    )
    candidates = read_request(request).candidates
    lora, bitfit, ia3, full = (compared_method(each, found, "eval_loss", tmp_path) for each in candidates)
    assert (lora.status, lora.reason) == ("finished", "1 of 3 seeds diverged: the loss is not finite")
    assert (lora.scores, lora.rate, lora.score_before) == ([0.4, 0.4], 1e-3, 1.0)
    assert [(point.rate, point.score, point.state) for point in lora.rates] == [
        (1e-3, 0.4, "finished"), (3e-3, None, "stopped"),
    ]  # fmt: skip
    assert (lora.peak_memory_bytes, lora.tokens_per_second, lora.percent) == (7, 7.0, 5.0)
    assert [curve.seed for curve in lora.curves] == [1, 3] and lora.curves[0].steps == [0, 4]
    assert (bitfit.status, bitfit.reason) == ("refused", "no biases")
    assert ia3.status == "diverged" and ia3.reason == "every rate diverged: 0.0003, 0.001" and ia3.scores == []
    assert (ia3.trainable, ia3.saved) == (5, None), "a run that diverged saved nothing"
    assert (full.status, full.reason) == ("failed", "killed three times")


@pytest.mark.parametrize("rates", [{}, {1e-3: finished()}])
def test_seeds_that_diverged_are_not_called_rates(workspace, tmp_path: Path, rates: dict[float, TrialResult]) -> None:
    request = CompareRequest(
        paths=[workspace.recipe("lost")], overrides=[], methods="lora,bitfit", budget=None, rates=len(rates), seeds=2,
        jobs=1, reference="none", metric=None, storage=None, output=None, trust_code=False, command="peft",
    )  # fmt: skip
    lost = TrialResult("one", "diverged", "the loss is not finite at step 3")
    found = Found(
        timing={"lora": finished()}, rates={"lora": rates}, chosen={"lora": 1e-3}, scores={"lora": [lost] * 2},
        seeds=[1, 2],
    )  # fmt: skip
    row = compared_method(read_request(request).candidates[0], found, "eval_loss", tmp_path)
    assert (row.status, row.reason) == ("diverged", "all 2 seeds diverged: the loss is not finite at step 3")


@pytest.mark.parametrize("text", [None, "{", "[]", '{"version": 1}'])
def test_scores_that_are_damaged_or_gone_are_named_with_a_remedy(tmp_path: Path, text: str | None) -> None:
    (tmp_path / "scores").mkdir()
    file = tmp_path / "scores" / "one.json"
    if text is not None:
        file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        trial_scores(tmp_path, "one")
    assert caught.value.problems[0].file == str(file) and "results" in (caught.value.problems[0].suggestion or "")


SCORES = RowScores("text", 0, {"": 1}, "x", ["a"], [[0, 1]], [1.0], [1.0])
DAMAGED = {
    "cut": "{", "a list": "[]", "a number": "5", "other keys": '{"version": 2}', "deep": "[" * 100_000,
    "text for a number": json.dumps(SCORES.as_dict() | {"loss_sums": ["1.0"]}),
    "a row too few": json.dumps(SCORES.as_dict() | {"counts": []}),
    "a number for a list": json.dumps(SCORES.as_dict() | {"places": 5}),
    "another version": json.dumps(SCORES.as_dict() | {"version": 0}),
}  # fmt: skip


@pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED)
def test_damaged_scores_are_computed_again_whoever_wrote_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str
) -> None:
    monkeypatch.setattr("peftcli.studies.compare.kept_scores.score_rows", lambda run: SCORES)
    file = tmp_path / "scores" / "one.json"
    file.parent.mkdir()
    for read in (lambda: kept_scores(file, lambda: SCORES), lambda: trial_scores(tmp_path, "one")):
        file.write_text(text, encoding="utf-8")
        assert read() == SCORES
        assert RowScores.from_dict(json.loads(file.read_text(encoding="utf-8"))) == SCORES
