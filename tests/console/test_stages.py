"""Stages of what takes long: told to whoever watches, in order, and to nobody else."""

from __future__ import annotations

from pathlib import Path

from peftcli.inference.evaluate_run import evaluate_run
from peftcli.inference.predict_run import predict_run
from peftcli.merging.merge_run import merge_run
from peftcli.progress import Stage, end_watching, stage, watched_by
from peftcli.training.run import train
from tests.recipes import class_rows, write_jsonl


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
