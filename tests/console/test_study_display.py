"""A study on the screen: the lines of its trials, and the command that its report shows."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from peftcli.console.study_views import study_display, sweep_view
from peftcli.console.study_views.compare_view import print_record
from peftcli.console.study_views.study_display import StudyDisplay
from peftcli.console.study_views.study_options import typed_command
from peftcli.studies.engine.trial import CurvePoint, Trial, TrialResult
from tests.studies.report.records import example_comparison, example_sweep


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
    assert lines[1] == f"1/2 {shown}: stopped eval_loss 0.5000 (by the study) in 2 s"
    assert lines[2] == f"2/2 {shown}: eval_loss 0.2500 in 2 s"


def test_a_rate_that_a_sweep_searches_is_shown_once(capsys) -> None:
    key = "training.learning_rate"
    trial = Trial("a", "r.yaml", (f"{key}=0.0084626", "seed=3"), group=f"{key} = 0.008463, method.r = 4")
    with StudyDisplay("eval_loss") as display:
        display.phase("the search", 1, None)
        display.ended(trial, TrialResult("a", "finished", summary={"eval": {"eval_loss": 0.25}}, seconds=2.0))
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"1/1 {key} = 0.008463, method.r = 4, seed 3: eval_loss 0.2500 in 2 s"


@pytest.mark.parametrize("joined", [False, True])
def test_a_report_shows_the_command_without_the_password_of_its_database(monkeypatch, joined: bool) -> None:
    url = "postgresql://me:secret@host/db"
    option = [f"--storage={url}"] if joined else ["--storage", url]
    monkeypatch.setattr("sys.argv", ["/bin/peft", "compare", "my recipe.yaml", *option])
    shown = f"--storage{'=' if joined else ' '}postgresql://me@host/db"
    assert typed_command(url) == f"peft compare 'my recipe.yaml' {shown}"


def drawn(width: int, show: Callable[[Console], None]) -> str:
    """Return what is printed on a terminal of so many columns, without colours."""
    stream = io.StringIO()
    show(Console(file=stream, width=width, force_terminal=True, color_system=None))
    return stream.getvalue()


@pytest.mark.parametrize("width", [40, 60, 80])
def test_no_number_and_no_word_of_a_comparison_is_parted(width: int) -> None:
    text = drawn(width, lambda console: print_record(example_comparison(), console))
    words = text.split()
    assert {"accuracy", "verdict", "parallel_adapter", "bitsandbytes"} <= set(words)
    assert "591.4K" in words or re.search(r"columns that do not fit: [\w, ]*trains", text)
    assert max(map(len, text.splitlines())) <= width


def test_a_sweep_in_80_columns_has_its_verdicts_and_why_trials_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    def show(console: Console) -> None:
        monkeypatch.setattr(sweep_view, "result_console", lambda: console)
        sweep_view.print_sweep(example_sweep(), Path("runs") / ("long" * 20))

    text = drawn(80, show)
    assert "tied with the best" in text and "columns that do not fit: 95% interval, seeds" in text
    assert "11, 23 failed: the loss was not finite at step 31" in text and text.count("the loss was not finite") == 1
    assert f"peft train runs/{'long' * 20}/best.yaml" in text  # to copy it


@pytest.mark.parametrize("group", ["data.template = <s>[INST] {text} [/INST]", "lora:target_modules=[attn.q,attn.v]"])
def test_brackets_of_a_trial_are_shown_on_a_terminal_and_are_no_markup(
    monkeypatch: pytest.MonkeyPatch, group: str
) -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=120, force_terminal=True, color_system=None)
    monkeypatch.setattr(study_display, "safe_console", lambda **_: console)
    with StudyDisplay("eval_loss") as display:
        display.phase("the grid", 1, None)
        display.started(Trial("a", "r.yaml", group=group))
    assert group in stream.getvalue()
