"""What a comparison does with the time that its runs really took; runs here are results with a time."""

from __future__ import annotations

from collections.abc import Sequence
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


class Timed:
    """A study whose trials end at once and say that they took a given time."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds, self.ran = seconds, list[Trial]()

    def result(self, _name: str) -> TrialResult | None:
        return None

    def run(self, trials: Sequence[Trial], **_options: Any) -> list[TrialResult]:
        self.ran += trials
        return [self._result(trial) for trial in trials]

    def _result(self, trial: Trial) -> TrialResult:
        steps = int(next(one for one in trial.overrides if "max_steps" in one).split("=")[1])
        point = CurvePoint(steps, {"eval_loss": 1.0, "eval_rows": 6.0, "eval_runtime": 0.0})
        summary = {"steps": steps, "total_steps": steps, "train_tokens": 100 * steps, "tokens_per_second": 1e5}
        return TrialResult(trial.name, "finished", summary=summary, curve=(point,), seconds=self.seconds[trial.purpose])


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
    study = Timed({"timing": 1.0, "score": seconds})
    found = Phases(replace(asked, directory=tmp_path), study, Silent()).run()  # type: ignore[arg-type]
    assert len(found.seeds) == seeds
    assert any("the budget left no time for another" in note for note in found.notes) == (seeds < 3)
