"""What a kill leaves is tidied, a trained run is never removed, and nothing is written through a link."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from peftcli.atomic import remove_directory
from peftcli.errors import Stopped, UserError
from peftcli.record.checkpoints import Checkpoints, read_verified
from peftcli.record.run_directory import RunDirectory, RunStatus
from peftcli.training import finish_run
from peftcli.training import run as running
from peftcli.training.milestones import Milestones
from peftcli.training.run import train
from tests import moments


def leave_behind(out: Path) -> None:
    """Put into a finished run what a kill leaves there."""
    Checkpoints(out, None).save_best(2, {"adapter": {"w": torch.ones(1)}})
    (out / "checkpoints" / ".partial-old-best-000004").mkdir()
    (out / "plots" / ".partial-loss.svg").write_text("half")
    (out / ".partial-summary.json").write_text("half")
    (out / ".lock").touch()
    (out / ".lock_holder").write_text("process 1 on a machine")


def left(out: Path) -> list[str]:
    return [path.name for path in out.rglob("*") if path.name.startswith((".", "best-"))]


def test_the_next_command_tidies_a_finished_run(recipe) -> None:
    loaded = recipe(training__max_steps=1)
    out = Path(train(loaded).output_dir)
    leave_behind(out)
    with RunDirectory(out).locked():
        (out / "plots" / ".partial-loss.svg").touch()  # another process is finishing: nothing of it is touched
        assert train(loaded).status == "already_finished"
        assert ".partial-loss.svg" in left(out)
    assert train(loaded).status == "already_finished"
    assert left(out) == []


def test_a_run_that_is_finished_by_resume_is_tidy(recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = recipe(training__max_steps=2, training__eval_steps=1, data__val_set_size=4)
    out = Path(loaded.recipe.output_dir)
    with monkeypatch.context() as patched, pytest.raises(Stopped):
        patched.setattr(finish_run, "write_plots", interrupt)
        train(loaded)
    (out / "plots").mkdir()
    leave_behind(out)
    assert train(loaded, resume=True).status == "finished"
    assert left(out) == []


def interrupt(*_arguments: object, **_options: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("metrics", ["as written", "deleted", "damaged"])
def test_a_trained_run_is_never_removed(recipe, monkeypatch: pytest.MonkeyPatch, metrics: str) -> None:
    """Nothing was saved or logged between, and the interrupt comes while the result is written."""
    loaded = recipe(training__max_steps=3, training__save_strategy="no", training__logging_steps=500)
    out = Path(loaded.recipe.output_dir)

    def end(*_arguments: object) -> None:
        if metrics != "as written":
            (out / "metrics.jsonl").unlink(missing_ok=True)
        if metrics == "damaged":
            (out / "metrics.jsonl").write_text("null\n")
        raise KeyboardInterrupt

    monkeypatch.setattr(finish_run, "write_plots", end)
    with pytest.raises(Stopped, match="adapter is the whole result; start again with --overwrite"):
        train(loaded)
    assert (out / "adapter" / "adapter_model.safetensors").is_file()
    with monkeypatch.context() as patched, pytest.raises(Stopped):
        patched.setattr(running, "build_session", end)
        train(loaded, resume=True)
    with monkeypatch.context() as patched, pytest.raises(Stopped):
        patched.setattr(Milestones, "evaluate_first", end)
        train(loaded, resume=True)  # it starts again, and the result stays until there is another
    assert (out / "adapter" / "adapter_model.safetensors").is_file()


def test_one_interrupt_while_the_result_is_written_does_not_end_it(recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = recipe(training__max_steps=2, training__save_strategy="no")
    finish = running.finish

    def interrupted(*arguments: object) -> object:
        os.kill(os.getpid(), 2)
        return finish(*arguments)

    monkeypatch.setattr(running, "finish", interrupted)
    assert train(loaded).status == "finished"


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
@pytest.mark.parametrize(
    "name", [".lock", ".lock_holder", "metrics.jsonl", "samples.jsonl", "plots", "profile", "profile/table.txt"]
)
def test_nothing_is_written_through_a_link(recipe, tmp_path: Path, name: str) -> None:
    loaded = recipe(training__max_steps=1)
    out = Path(loaded.recipe.output_dir)
    precious = tmp_path / "precious"
    precious.mkdir() if name in ("plots", "profile") else precious.write_text("kept")
    (out / name).parent.mkdir(parents=True)
    (out / name).symlink_to(precious)
    with pytest.raises(UserError, match="is a link") as caught:
        train(loaded, overwrite=True)
    assert name in str(caught.value)
    assert list(precious.iterdir()) == [] if precious.is_dir() else precious.read_text() == "kept"


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_a_partial_file_that_is_a_link_is_removed_alone(recipe, tmp_path: Path) -> None:
    loaded = recipe(training__max_steps=1)
    out = Path(loaded.recipe.output_dir)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("kept")
    out.mkdir(parents=True)
    (out / ".partial-recipe.yaml").symlink_to(tmp_path / "file")
    (out / ".partial-adapter").symlink_to(tmp_path / "folder")
    assert train(loaded).status == "finished"
    assert (tmp_path / "file").read_text() == "kept" and (tmp_path / "folder").is_dir()
    assert left(out) == []


@pytest.mark.skipif(os.name == "nt", reason="Windows has no named pipes in directories")
def test_a_pipe_in_place_of_a_file_is_not_waited_for(tmp_path: Path) -> None:
    checkpoint = Checkpoints(tmp_path, None).save(1, {"progress": {"best_step": None}})
    for path in (tmp_path / "metrics.jsonl", checkpoint / "state.json", checkpoint / "manifest.json"):
        path.unlink(missing_ok=True)
        os.mkfifo(path)
        with pytest.raises(UserError, match=path.name):
            RunDirectory(tmp_path).metrics.lines() if path.parent == tmp_path else read_verified(checkpoint)


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_without_its_recipe_is_not_replaced_unasked(recipe, resume: bool) -> None:
    loaded = recipe(training__max_steps=2)
    out = Path(train(loaded).output_dir)
    (out / "recipe.yaml").unlink()
    with pytest.raises(UserError, match=r"adapter.* of a run, but not its recipe\.yaml"):
        train(loaded, resume=resume)
    assert (out / "adapter").is_dir()
    assert train(loaded, overwrite=True).status == "finished"


def test_a_clear_that_is_cut_short_leaves_an_unfinished_run(recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = recipe(training__max_steps=2)
    out = Path(train(loaded).output_dir)
    monkeypatch.setattr("shutil.rmtree", interrupt)
    with pytest.raises(KeyboardInterrupt):
        RunDirectory(out).begin("")
    assert RunDirectory(out).status() is RunStatus.UNFINISHED


def test_a_run_from_an_earlier_checkpoint_drops_the_damaged_later_ones(tmp_path: Path) -> None:
    """Else `save_total_limit` would count them, and remove the good one that was just written."""
    checkpoints = Checkpoints(tmp_path, keep=1)
    tree = {"progress": {"best_step": None}}
    checkpoints.save(4, tree)
    (checkpoints.directory / "step-000004" / "manifest.json").write_text("null")
    (checkpoints.directory / "step-000004-copy").mkdir()  # somebody's own
    checkpoints.save(3, tree)
    assert checkpoints.steps() == [3] and (checkpoints.directory / "step-000004-copy").is_dir()


@pytest.mark.parametrize("at", [1, 2])
def test_a_checkpoint_that_was_being_replaced_is_there_again(tmp_path: Path, at: int) -> None:
    """A kill at either rename of the replacement: the first is still to come, or was done."""
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(4, {"progress": {"best_step": None}, "which": "old"})
    seen = 0

    def kill(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        seen += event == "os.rename" and "step-000004" in str(arguments)
        if seen == at:
            raise KeyboardInterrupt

    with moments.listening(kill), pytest.raises(KeyboardInterrupt):
        checkpoints.save(4, {"progress": {"best_step": None}, "which": "new"})
    with RunDirectory(tmp_path).locked():
        assert checkpoints.latest(str, lambda tree, _: tree)["which"] == "old"
    assert left(tmp_path) == []


def test_what_was_being_removed_is_not_there_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path, keep=None)
    checkpoints.save(4, {"progress": {"best_step": None}})
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("shutil.rmtree", interrupt)
        remove_directory(checkpoints.directory / "step-000004")
    with RunDirectory(tmp_path).locked():
        assert checkpoints.steps() == [] and left(tmp_path / "checkpoints") == []


def test_a_manifest_that_names_another_best_adapter_is_noticed(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=None)
    manifest = checkpoints.save(4, {"progress": {"best_step": 2}}) / "manifest.json"
    record = json.loads(manifest.read_text())
    for damaged in ({**record, "best_step": 3}, {**record, "files": {}}):
        manifest.write_text(json.dumps(damaged))
        with pytest.raises(UserError, match=r"manifest\.json is not what was written"):
            read_verified(manifest.parent)
