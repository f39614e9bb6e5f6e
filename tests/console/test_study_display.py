"""A study on the screen: the lines of its trials, and the command that its report shows."""

from __future__ import annotations

import pytest

from peftcli.console.study_views.study_display import StudyDisplay
from peftcli.console.study_views.study_options import typed_command
from peftcli.studies.engine.trial import CurvePoint, Trial, TrialResult


@pytest.mark.parametrize(("typed", "shown"), [("1e-4", "lora, rate 0.0001, seed 3"), ("null", "lora, seed 3")])
def test_a_rate_is_shown_where_it_is_a_number(capsys, typed: str, shown: str) -> None:
    trial = Trial("a", "r.yaml", (f"training.learning_rate={typed}", "seed=3"), group="lora")
    curve = (CurvePoint(4, {"eval_loss": 0.5}),)
    with StudyDisplay("eval_loss") as display:
        display.phase("the grid", 2, None)
        display.started(trial)
        display.ended(trial, TrialResult("a", "stopped", "by the study", curve=curve, seconds=2.0))
        display.ended(trial, TrialResult("a", "finished", summary={"eval": {"eval_loss": 0.25}}, seconds=2.0))
    lines = capsys.readouterr().err.splitlines()
    assert lines[1] == f"1/2 {shown}: stopped eval_loss 0.5 (by the study) in 2 s"
    assert lines[2] == f"2/2 {shown}: eval_loss 0.25 in 2 s"


@pytest.mark.parametrize("joined", [False, True])
def test_a_report_shows_the_command_without_the_password_of_its_database(monkeypatch, joined: bool) -> None:
    url = "postgresql://me:secret@host/db"
    option = [f"--storage={url}"] if joined else ["--storage", url]
    monkeypatch.setattr("sys.argv", ["/bin/peft", "compare", "my recipe.yaml", *option])
    shown = f"--storage{'=' if joined else ' '}postgresql://me@host/db"
    assert typed_command(url) == f"peft compare 'my recipe.yaml' {shown}"
