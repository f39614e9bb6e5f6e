"""What Optuna's storage holds of a trial, and how it is said that a storage went away."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftcli.errors import UserError
from peftcli.studies.engine.storage import open_storage
from peftcli.studies.engine.study_files import StudyFiles
from peftcli.studies.engine.trial import CurvePoint, Trial, TrialResult
from peftcli.studies.engine.trial_states import TrialStates
from tests.studies.engine.small_study import ASKED

TRIAL = Trial("a", "recipes/small.yaml", group="lora")
FINISHED = TrialResult("a", "finished", summary={"eval": {"eval_loss": 0.5}})


def opened(directory: Path, storage: str | None = None):
    place = open_storage(StudyFiles(directory), ASKED, storage)
    study = place.study(greater_is_better=False)
    return study, TrialStates(study, place.storage, "eval_loss")


@pytest.mark.parametrize("database", [False, True])
def test_a_trial_has_its_evaluations_and_its_end_once(tmp_path: Path, database: bool) -> None:
    study, states = opened(tmp_path / "study", f"sqlite:///{tmp_path / 'x.db'}" if database else None)
    states.begin(TRIAL)
    states.report(TRIAL, CurvePoint(4, {"eval_loss": 0.7}))
    states.begin(TRIAL)  # a worker that took it over
    states.report(TRIAL, CurvePoint(8, {"eval_loss": 0.6}))
    states.end(FINISHED)
    states.end(FINISHED)
    (found,) = study.trials
    assert (found.state.name, found.value, found.intermediate_values) == ("COMPLETE", 0.5, {4: 0.7, 8: 0.6})
    assert (found.user_attrs["name"], found.user_attrs["group"], found.user_attrs["state"]) == ("a", "lora", "finished")


@pytest.mark.parametrize("database", [False, True])
def test_of_two_workers_that_write_an_end_at_once_one_does(tmp_path: Path, monkeypatch, database: bool) -> None:
    storage = f"sqlite:///{tmp_path / 'x.db'}" if database else None
    study, states = opened(tmp_path / "study", storage)
    states.begin(TRIAL)
    _, others = opened(tmp_path / "study", storage)
    seen = others._running("a")
    assert seen is not None
    states.end(FINISHED)
    monkeypatch.setattr(others, "_running", lambda _name: seen)  # it looked before the end was written
    others.end(FINISHED)
    assert [one.state.name for one in study.trials] == ["COMPLETE"]


def test_a_trial_of_a_sweep_whose_result_was_removed_is_tried_again(tmp_path: Path) -> None:
    study, states = opened(tmp_path / "study")
    trial = Trial("a", "recipes/small.yaml", number=study.ask().number)
    states.begin(trial)
    states.end(TrialResult("a", "failed", "killed"))
    states.begin(trial)
    states.report(trial, CurvePoint(4, {"eval_loss": 0.7}))
    states.end(FINISHED)
    assert [(one.user_attrs["name"], one.state.name) for one in study.trials] == [("a", "FAIL"), ("a", "COMPLETE")]


def test_a_database_that_went_away_is_said_with_what_to_do(tmp_path: Path) -> None:
    file = tmp_path / "x.db"
    _, states = opened(tmp_path / "study", f"sqlite:///{file}")
    file.write_bytes(b"no database any more" * 1000)
    with pytest.raises(UserError, match=r"does not answer any more: .*not a database") as caught:
        states.begin(TRIAL)
    assert caught.value.problems[0].suggestion == "when it is back, the same command continues"
