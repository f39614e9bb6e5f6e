"""What a comparison does with what its runs showed, their time and their scores; runs here are results at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from peftcli.console.study_views.compare_request import read_request
from peftcli.studies.compare.phases import Phases
from peftcli.studies.engine.trial import CurvePoint, Trial, TrialResult
from tests.studies.compare.test_request import request

STEPS = 20
"""Of a recipe, and the fewest that a plan gives a run: nothing can be shortened."""


class Silent:
    """A watcher of nothing."""

    def __getattr__(self, _name: str) -> Any:
        return lambda *_args, **_options: None


class Told:
    """A study whose trials end at once, with a time by their purpose and a loss by their purpose and rate."""

    def __init__(self, seconds: Mapping[str, float], losses: Mapping[tuple[str, str], float] | None = None) -> None:
        self.seconds, self.losses, self.ran = seconds, losses or {}, list[Trial]()

    def result(self, _name: str) -> TrialResult | None:
        return None

    def run(self, trials: Sequence[Trial], **_options: Any) -> list[TrialResult]:
        self.ran += trials
        return [self._result(trial) for trial in trials]

    def _result(self, trial: Trial) -> TrialResult:
        steps = int(next(one for one in trial.overrides if "max_steps" in one).split("=")[1])
        rate = next((one.split("=")[1] for one in trial.overrides if "learning_rate" in one), "")
        loss = self.losses.get((trial.purpose, rate), 1.0)
        point = CurvePoint(steps, {"eval_loss": loss, "eval_rows": 6.0, "eval_runtime": 0.0})
        summary = {"steps": steps, "total_steps": steps, "train_tokens": 100 * steps, "tokens_per_second": 1e5}
        seconds = self.seconds.get(trial.purpose, 1.0)
        return TrialResult(trial.name, "finished", summary=summary, curve=(point,), seconds=seconds)


@pytest.mark.parametrize(("seconds", "seeds"), [(1.0, 3), (400.0, 1)])
def test_no_seed_begins_that_would_not_end_within_the_budget_by_what_the_last_one_took(
    workspace, tmp_path, seconds: float, seeds: int
) -> None:
    recipe = workspace.recipe("slowed", training__max_steps=STEPS)
    asked = read_request(
        request(
            recipe,
            methods="lora,bitfit",
            reference="none",
            budget="10m",
            rates=0,
            overrides=["training.learning_rate=0.1"],
        )
    )
    study = Told({"timing": 1.0, "score": seconds})
    found = Phases(replace(asked, directory=tmp_path), study, Silent()).run()  # type: ignore[arg-type]
    assert len(found.seeds) == seeds
    assert any("the budget left no time for another" in note for note in found.notes) == (seeds < 3)


def test_a_rate_that_does_not_hold_on_a_fresh_seed_makes_way_for_a_lower_one(workspace, tmp_path) -> None:
    recipe = workspace.recipe("lucky", training__max_steps=STEPS)
    changes = ["training.learning_rate=0.03"]
    asked = read_request(request(recipe, methods="lora,bitfit", reference="none", rates=3, seeds=2, overrides=changes))
    losses = {("rate", "0.01"): 1.0, ("rate", "0.03"): 0.8, ("rate", "0.09"): 0.5, ("rate", "0.27"): 2.0}
    losses |= {("score", "0.03"): 0.7, ("score", "0.09"): 1.6}
    study = Told({}, losses)
    found = Phases(replace(asked, directory=tmp_path), study, Silent()).run()  # type: ignore[arg-type]
    assert found.chosen == {"lora": 0.03, "bitfit": 0.03}
    assert [each.curve[-1].metrics["eval_loss"] for each in found.scores["lora"]] == [0.7, 0.7]
    assert any("at the rate 0.09 a fresh seed scored clearly worse" in note for note in found.notes)
    names = [trial.name for trial in study.ran if trial.purpose == "score"]
    assert len(names) == len(set(names)) == 6, "a seed at the rate that fell, two at the one below it, for each method"
