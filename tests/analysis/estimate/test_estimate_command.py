"""`peft estimate` and `peft train --dry-run` on the command line."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from peftcli.assembly import recipe_data
from peftcli.errors import UserError
from tests.command_line import Cli, Workspace

PARTS = {"libraries", "weights", "adapter", "gradients", "optimizer", "activations", "logits"}


@pytest.fixture(autouse=True)
def _no_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries are measured in a test of their own, which takes seconds."""
    from peftcli.analysis.estimate import estimating

    monkeypatch.setattr(estimating, "library_bytes", lambda _device, *, quantised: nullcontext(lambda: 1000))


def test_an_estimate_reads_the_rows_and_no_weights(cli: Cli, workspace: Workspace, tmp_path: Path) -> None:
    without = shutil.ignore_patterns("*.safetensors")
    model = shutil.copytree(workspace.path / "bert", tmp_path / "model", ignore=without)
    found = cli("estimate", workspace.recipe(), f"model.name_or_path={model}", "--json").json
    assert found["tier"] == "data" and found["seconds"] is None
    (device,) = found["devices"]
    assert set(device["parts"]) >= PARTS
    summands = sum(size for part, size in device["parts"].items() if part != "evaluation")
    assert device["peak_memory_bytes"] == summands


def test_without_data_rows_have_the_greatest_length(cli: Cli, workspace: Workspace) -> None:
    done = cli("estimate", workspace.recipe(), "data.path=nowhere.jsonl")
    assert done.code == 0 and "every row is taken to have 16 tokens" in done.err
    assert "peak" in done.out and "expected error" in done.out


def test_steps_in_several_processes_are_not_measured(cli: Cli, workspace: Workspace) -> None:
    done = cli("estimate", workspace.recipe(), "--measure", "--num-processes", 2)
    assert done.code == 2 and "leave out --num-processes" in done.err


def test_a_dry_run_shows_the_header_and_the_estimate_and_writes_nothing(cli: Cli, workspace: Workspace) -> None:
    recipe = workspace.recipe("dry")
    done = cli("train", recipe, "--dry-run")
    assert done.code == 0, done.err
    assert "trainable" in done.err and "peak" in done.out and "time:" in done.out
    assert not Path(workspace.path / "runs" / "dry").exists()


def test_a_dry_run_prepares_rows_once_and_says_what_an_estimate_says(
    cli: Cli, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared: list[object] = []
    prepare = recipe_data.prepare
    monkeypatch.setattr(recipe_data, "prepare", lambda *args, **more: prepared.append(args) or prepare(*args, **more))
    recipe = workspace.recipe("once")
    rehearsed = cli("train", recipe, "--dry-run", "--json").json
    assert len(prepared) == 1
    assert rehearsed["tier"] == "data" and rehearsed == cli("estimate", recipe, "--json").json


def test_a_dry_run_is_refused_for_what_the_run_is_refused_for(cli: Cli, workspace: Workspace) -> None:
    directory = workspace.path / "runs" / "taken"
    directory.mkdir(parents=True)
    (directory / "letter.txt").write_text("keep me", encoding="utf-8")
    done = cli("train", workspace.recipe("taken"), "--dry-run")
    assert done.code == 2 and "letter.txt" in done.err
    done = cli("train", workspace.recipe("dry"), "--dry-run", "--resume")
    assert done.code == 2 and "--dry-run takes no step" in done.err


def test_a_process_of_its_own_takes_the_steps_and_tells_what_is_refused(workspace: Workspace) -> None:
    from peftcli.analysis.estimate import measured_run

    found = measured_run.measure(workspace.recipe(), [])
    assert found["peak_memory_bytes"] > 1e8 and found["tokens_per_second"] > 0
    with pytest.raises(UserError, match="nowhere"):
        measured_run.measure(workspace.recipe(), ["data.path=nowhere.jsonl"])


def test_measured_steps_are_followed_by_an_evaluation_and_a_checkpoint_as_in_a_run(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peftcli.analysis.estimate import measured_run
    from peftcli.inference.evaluator import Evaluator

    batches: list[int] = []
    evaluated = Evaluator._evaluated

    def noted(self: Evaluator, rows: Any, of_all: Any, chosen: Any, by_row: bool = False) -> Any:
        batches.append(len(chosen))
        return evaluated(self, rows, of_all, chosen, by_row)

    monkeypatch.setattr(Evaluator, "_evaluated", noted)
    changes = ["training.fast_paths.allocator=false", "training.per_device_eval_batch_size=6"]
    found = measured_run._steps(workspace.recipe(), changes, tmp_path)
    assert found["peak_memory_bytes"] > 0
    *before, after = batches
    assert sum(before) > 6 and after == 6  # the whole set before the first step, its largest batch after the second one
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"best-000002", "step-000002"}
