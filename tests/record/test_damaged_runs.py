"""A run directory that was moved, emptied or damaged is named for what it is; nothing ends in a traceback."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from peftcli.errors import UserError
from peftcli.inference.evaluate_run import evaluate_run
from peftcli.inference.open_run import open_run
from peftcli.training.run import train


@pytest.mark.parametrize("text", ["{", "[]", "", "{}", '{"status": "finished", "other": 1}'])
def test_a_damaged_summary_is_named(recipe, text: str) -> None:
    loaded = recipe(training__max_steps=1)
    out = Path(train(loaded).output_dir)
    (out / "summary.json").write_text(text)
    with pytest.raises(UserError, match=r"summary\.json") as caught:
        train(loaded, resume=True)
    assert "--overwrite" in str(caught.value)


def test_a_finished_run_without_its_weights_is_not_called_done(recipe) -> None:
    loaded = recipe(training__max_steps=1)
    out = Path(train(loaded).output_dir)
    (out / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match="holds no weights"):
        train(loaded)
    shutil.rmtree(out / "adapter")
    with pytest.raises(UserError, match="holds no weights"):
        train(loaded)
    assert train(loaded, overwrite=True).status == "finished"


def test_a_moved_run_is_named_by_where_it_is(recipe, tmp_path: Path) -> None:
    first = train(recipe(training__max_steps=1))
    moved = tmp_path / "moved"
    shutil.move(first.output_dir, moved)
    assert train(recipe(training__max_steps=1, output_dir=str(moved))).output_dir == str(moved)


def test_resume_and_overwrite_contradict_each_other(recipe) -> None:
    loaded = recipe(training__max_steps=1)
    out = Path(train(loaded).output_dir)
    with pytest.raises(UserError, match="give one of the two"):
        train(loaded, resume=True, overwrite=True)
    assert (out / "summary.json").is_file()


def test_using_what_is_no_run_never_asks_to_empty_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for path in (tmp_path, tmp_path / "config.json"):
        with pytest.raises(UserError, match="is no run directory") as caught:
            open_run(path)
        assert "empty" not in str(caught.value)
    with pytest.raises(UserError, match="no run directory and no recipe"):
        evaluate_run(tmp_path / "nowhere")


def test_saving_a_whole_model_draws_no_bar(recipe, capfd: pytest.CaptureFixture[str]) -> None:
    train(recipe(method={"name": "full"}, training__max_steps=1))
    assert "shards" not in capfd.readouterr().err


def test_an_adapter_without_its_record_is_named(recipe) -> None:
    loaded = recipe("bert", "sequence_classification", training__max_steps=1)
    out = Path(train(loaded).output_dir)
    (out / "adapter" / "peftcli.json").unlink()
    with pytest.raises(UserError, match=r"names no labels: its peftcli\.json is missing"):
        open_run(out)


@pytest.mark.parametrize("held_out", [1, 5])
def test_a_last_batch_of_one_row_is_evaluated(recipe, held_out: int) -> None:
    sizes = {"data__val_set_size": held_out, "training__per_device_eval_batch_size": 4}
    summary = train(recipe("bert", "sequence_classification", training__max_steps=1, **sizes))
    assert summary.eval is not None and 0 <= summary.eval["eval_accuracy"] <= 1
