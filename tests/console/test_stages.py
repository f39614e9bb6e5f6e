"""Stages of what takes long: told to whoever watches, in order, and to nobody else."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftcli.cli import app
from peftcli.console.terminal import say
from peftcli.inference.evaluate_run import evaluate_run
from peftcli.inference.predict_run import predict_run
from peftcli.merging.merge_run import merge_run
from peftcli.progress import Stage, end_watching, stage, watched_by
from peftcli.training.run import train
from tests.recipes import class_rows, write_jsonl

AT_ONCE = {"convert", "plugins", "recipes", "runs", "schema", "validate"}
"""Commands that load no torch."""
OWN_SCREEN = {"train"}


class Watch:
    """Remembers each stage at its end."""

    def __init__(self) -> None:
        self.seen: dict[str, tuple[int, int | None]] = {}
        self.closed = 0

    def show(self, stage: Stage | None) -> None:
        if stage is not None:
            self.seen[stage.text] = (stage.done, stage.total)

    def close(self) -> None:
        self.closed += 1


def test_a_stage_within_another_takes_its_place() -> None:
    watch = Watch()
    with stage("unseen") as advance:
        advance(1)
    with watched_by(watch), stage("outer", 3) as outer:
        outer(1)
        with stage("inner") as inner:
            outer(1)
            inner(5)
        assert watch.seen == {"outer": (2, 3), "inner": (5, None)}
        end_watching()
    assert watch.closed == 1
    end_watching()
    assert watch.closed == 1


def test_a_result_is_said_after_the_bar_is_gone() -> None:
    watch = Watch()
    with watched_by(watch):
        say("a note")
        assert watch.closed == 0
        say("a result", result=True)
        assert watch.closed == 1


def test_loading_preparing_evaluating_predicting_and_merging_are_told(recipe, tmp_path: Path) -> None:
    run = train(recipe("bert", "sequence_classification", class_rows(24), training__max_steps=1)).output_dir
    rows = write_jsonl(tmp_path / "rows.jsonl", class_rows(7))
    watch = Watch()
    with watched_by(watch):
        evaluate_run(run, str(rows))
        assert watch.seen["loading the model"] == (0, None) and watch.seen["evaluating"] == (7, 7)
        assert watch.seen["preparing rows"] == (7, None)
        assert len(list(predict_run(run, str(rows)))) == 7 and watch.seen["predicting"] == (7, 7)
        report = merge_run(run, tmp_path / "merged", use_alone=False)
    assert watch.seen["merging"] == (report.tensors, report.tensors)
    assert "comparing with base + adapter" in watch.seen


@pytest.mark.parametrize("command", sorted(set(app.COMMANDS) - AT_ONCE - OWN_SCREEN))
def test_what_takes_long_shows_that_it_is_at_work(command: str) -> None:
    source = (Path(app.__file__).parent / f"{command}.py").read_text(encoding="utf-8")
    assert "with_progress(" in source or "progress_shown(" in source
