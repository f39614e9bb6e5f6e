"""What a run directory of somebody else, or of another version, may hold: data, read as data or refused by name."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console

from peftcli.console.display import print_summary
from peftcli.errors import Stopped, UserError
from peftcli.record.run_directory import RunDirectory
from peftcli.record.tensor_tree import load_tree, save_tree
from peftcli.training import run as running
from peftcli.training.run import train
from tests.recipes import Recorder


def interrupt(*_arguments: object, **_options: object) -> None:
    raise KeyboardInterrupt


ODD = {
    "an unknown kind": '{"array": "000000", "dtype": "O"}',
    "no such type": '{"array": "000000", "dtype": "os.system"}',
    "no such tensor": '{"tensor": "1"}',
    "a key that is none": '{"dict": [[[1], 2]]}',
    "a dict that is none": '{"__reduce__": ["os.system", "true"]}',
    "pairs that are none": '{"dict": 3}',
    "deep": '{"tuple": [' * 600 + "]}" * 600,
    "deeper": "[" * 100_000,
}


@pytest.mark.parametrize("text", ODD.values(), ids=ODD.keys())
def test_a_tree_is_data_and_nothing_else(tmp_path: Path, text: str) -> None:
    save_tree(tmp_path, torch.ones(2))
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(UserError, match=r"state\.json"):
        load_tree(tmp_path)


def _without(key: str) -> Callable[[dict], dict]:
    return lambda tree: {name: value for name, value in tree.items() if name != key}


FOREIGN: dict[str, Callable[[dict], object]] = {
    "a list": lambda tree: [tree],
    "no parameters": _without("parameters"),
    "no optimizer": _without("optimizer"),
    "no progress": _without("progress"),
    "text for a step": lambda tree: {**tree, "progress": {**tree["progress"], "step": "4"}},
    "a tensor for a step": lambda tree: {**tree, "progress": {**tree["progress"], "step": torch.ones(1)}},
    "an odd window": lambda tree: {**tree, "processes": [{"window": {"count": ["os"]}}]},
    "no windows": lambda tree: {**tree, "processes": []},
    "odd optimizer": lambda tree: {**tree, "optimizer": {"state": 3, "param_groups": [{}]}},
    "odd tensors": lambda tree: {**tree, "parameters": dict.fromkeys(tree["parameters"], torch.ones(3, 3, 3))},
}


@pytest.mark.parametrize("change", FOREIGN.values(), ids=FOREIGN.keys())
def test_a_whole_checkpoint_of_something_else_is_refused(recipe, monkeypatch, change) -> None:
    loaded = recipe(training__max_steps=2, training__save_steps=2)
    with monkeypatch.context() as patched, pytest.raises(Stopped):
        patched.setattr(running, "finish", interrupt)
        train(loaded)
    checkpoints = RunDirectory(Path(loaded.recipe.output_dir)).checkpoints()
    checkpoints.save(2, change(checkpoints.latest(str, lambda tree, _: tree)))
    with pytest.raises(UserError, match="--overwrite") as caught:
        train(loaded, resume=True)
    assert "checkpoints" in str(caught.value)


def test_keys_of_a_later_version_are_passed_over(recipe, monkeypatch) -> None:
    loaded = recipe(training__max_steps=2, training__save_steps=2)
    with monkeypatch.context() as patched, pytest.raises(Stopped):
        patched.setattr(running, "finish", interrupt)
        train(loaded)
    directory = RunDirectory(Path(loaded.recipe.output_dir))
    tree = directory.checkpoints().latest(str, lambda tree, _: tree)
    directory.checkpoints().save(2, {**tree, "progress": {**tree["progress"], "later": [1]}, "later": {}})
    assert train(loaded, resume=True).status == "finished"
    directory.summary_file.write_text(json.dumps({**directory.summary(), "later": [1]}))
    assert train(loaded).status == "already_finished"


NUMBERS = ("trainable", "peak_memory_bytes", "train_runtime", "tokens_per_second", "train_loss", "steps")
FREE = ("eval", "eval_before", "versions", "data")


def test_odd_values_of_a_summary_are_named_or_shown(recipe) -> None:
    loaded = recipe(training__max_steps=1)
    directory = RunDirectory(Path(train(loaded).output_dir))
    good = directory.summary()
    for value in ("x", {}, {"eval_loss": 10**400}, {"eval_loss": ["x"]}, [1], -1, 10**400, math.inf, math.nan):
        for key in (*NUMBERS, *FREE, "artifact", "output_dir", "status"):
            directory.summary_file.write_text(json.dumps({**good, key: value}))
            try:
                print_summary(directory.summary_record(), Console(file=StringIO()))
            except UserError as error:
                assert f"summary.json: {key}" in str(error) and "--overwrite" in str(error), (key, value)
            else:
                told_apart = key in ("output_dir", "status") or (key in FREE and isinstance(value, dict))
                assert told_apart or (key == "train_loss" and value == -1), (key, value)


def test_metrics_lead_nowhere_outside(recipe) -> None:
    """A name in metrics.jsonl becomes that of a file in plots/."""
    from peftcli.training.watch.curves import write_plots

    loaded = recipe(training__max_steps=1)
    out = Path(train(loaded).output_dir)
    line = {"step": 1, "eval_loss": 10**400, "eval_/../../../out": 1.0, "eval_\ud83d": 2.0, "eval_" + "x" * 300: 3.0}
    write_plots(out / "plots", [line, {"step": 10**400, "loss": 1.0}])
    assert not list(out.parent.glob("**/out*.svg")) and not list(out.parent.parent.glob("*.svg"))


def test_half_a_surrogate_pair_in_a_sample_is_written_as_json(tmp_path: Path) -> None:
    lines = RunDirectory(tmp_path).samples
    lines.append({"step": 1, "prompt": "\ud83d Straße"})
    assert lines.cut(1) is None and lines.lines()[0]["prompt"] == "\ud83d Straße"


def test_missing_lines_of_metrics_are_told(recipe, monkeypatch) -> None:
    loaded = recipe(training__max_steps=4, training__save_steps=2)
    with monkeypatch.context() as patched, pytest.raises(Stopped):
        patched.setattr(running, "finish", interrupt)
        train(loaded)
    metrics = Path(loaded.recipe.output_dir) / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes()[:200])
    reporter = Recorder()
    assert train(loaded, resume=True, reporter=reporter).status == "finished"
    assert any("has no line of step" in note for note in reporter.notes)
