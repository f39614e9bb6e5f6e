"""The run directory: its states, its lock, checkpoints that are whole or not there."""

from __future__ import annotations

import errno
import json
import math
import os
import subprocess
import sys
from typing import Annotated, Literal

import numpy as np
import pytest
import torch
import yaml
from pydantic import Field

from peftcli.data.store.cache import cached_store
from peftcli.errors import UserError
from peftcli.methods.lora import LoraParams
from peftcli.protocol.registry import registry
from peftcli.recipe.method_params import IN_ORDER, MethodParams
from peftcli.recipe.schema import ModelSpec, Recipe
from peftcli.recipe.yaml.dump_recipe import dump_recipe
from peftcli.record import tensor_tree
from peftcli.record.checkpoints import Checkpoints, read_verified
from peftcli.record.random_state import random_states, restore_random_states, seed_everything
from peftcli.record.recipe_changes import changed_keys
from peftcli.record.run_directory import RunDirectory, RunStatus
from peftcli.record.tensor_tree import load_tree, save_tree
from peftcli.training.watch.curves import curves_svg, write_plots

RECIPE = Recipe(model=ModelSpec(name_or_path="m"), task="causal_lm", method=LoraParams(r=8), output_dir="a")


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    return RunDirectory(tmp_path / "run")


def begun(run: RunDirectory) -> None:
    run.path.mkdir(exist_ok=True)
    run.begin(dump_recipe(RECIPE))


def test_states_in_the_life_of_a_run(run) -> None:
    assert run.check(RECIPE, resume=False, overwrite=False) is RunStatus.EMPTY
    begun(run)
    with pytest.raises(UserError, match="--resume"):
        run.check(RECIPE, resume=False, overwrite=False)
    assert run.check(RECIPE, resume=True, overwrite=False) is RunStatus.UNFINISHED
    assert run.check(RECIPE, resume=False, overwrite=True) is RunStatus.EMPTY
    run.write_summary({"status": "finished", "loss": math.nan})
    assert run.summary()["loss"] is None
    assert run.check(RECIPE.model_copy(update={"output_dir": "b"}), resume=False, overwrite=False) is RunStatus.FINISHED
    with pytest.raises(UserError, match=r"another recipe; they differ in method\.r"):
        run.check(RECIPE.model_copy(update={"method": LoraParams(r=4)}), resume=True, overwrite=False)


def test_a_run_of_an_earlier_version_goes_on(run) -> None:
    begun(run)
    old = yaml.safe_load(dump_recipe(RECIPE))
    old["training"]["group_by_length"] = old["training"].pop("train_sampling_strategy") == "group_by_length"
    del old["training"]["max_new_tokens"], old["method"]["use_dora"]  # keys that came later
    run.recipe_file.write_text(yaml.safe_dump(old))
    assert run.check(RECIPE, resume=True, overwrite=False) is RunStatus.UNFINISHED


@pytest.mark.parametrize("text", ["", "{", "- a", "model: {}", "\0"])
def test_a_damaged_recipe_is_named_and_can_be_replaced(run, text: str) -> None:
    begun(run)
    run.recipe_file.write_text(text)
    with pytest.raises(UserError, match="replace it with --overwrite") as caught:
        run.check(RECIPE, resume=True, overwrite=False)
    assert str(run.recipe_file) in str(caught.value)
    assert run.check(RECIPE, resume=False, overwrite=True) is RunStatus.EMPTY


def test_a_directory_that_is_no_run_is_left_alone(run) -> None:
    run.path.mkdir()
    (run.path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match=r"do not belong to a run: thesis\.tex"):
        run.check(RECIPE, resume=False, overwrite=False)


def test_begin_removes_what_a_run_wrote_and_nothing_else(run) -> None:
    begun(run)
    (run.path / "adapter").mkdir()
    (run.path / "notes.md").write_text("mine")
    begun(run)
    assert sorted(p.name for p in run.path.iterdir()) == ["notes.md", "recipe.yaml"]


HOLDS = """
import sys
from pathlib import Path
from peftcli.record.run_directory import RunDirectory
with RunDirectory(Path(sys.argv[1])).locked():
    print("held", flush=True)
    sys.stdin.read()
"""
"""Holds a directory until its standard input is closed."""


def test_two_processes_cannot_hold_one_directory(run) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDS, run.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with holder:
        assert holder.stdout.readline() == b"held\n"
        message = rf"another process is training .*: process {holder.pid} on"
        with pytest.raises(UserError, match=message) as caught, run.locked():
            pass
        assert caught.value.exit_code == 2
        assert run.path.exists()
    assert holder.returncode == 0
    assert not run.path.exists()  # nothing came of it
    with run.locked():
        assert run.status() is RunStatus.EMPTY  # the lock's own files are no strangers
    assert not run.path.exists()


def test_a_killed_holder_holds_nothing(run) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDS, run.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with holder:
        assert holder.stdout.readline() == b"held\n"
        holder.kill()
    assert run.path.exists()
    with run.locked():
        pass
    assert not run.path.exists()


@pytest.fixture(params=[errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP], ids=errno.errorcode.get)
def without_locks(request, monkeypatch) -> None:
    """A file system that has no locks: no such mount can be made here."""

    def refuse(_descriptor: int, _operation: int) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr("fcntl.flock", refuse)


@pytest.mark.skipif(os.name == "nt", reason="flock is a system call of Unix")
def test_a_file_system_without_locks_is_named_and_there_is_an_option(run, without_locks) -> None:
    with pytest.raises(UserError, match=r"file system without locks.*\n.*--no-lock"), run.locked():
        pass
    assert not run.path.exists()
    with run.locked(False):
        assert list(run.path.iterdir()) == []
    assert not run.path.exists()


@pytest.mark.skipif(os.name == "nt", reason="flock is a system call of Unix")
def test_the_cache_needs_locks_too(tmp_path, without_locks) -> None:
    with pytest.raises(UserError, match=r"file system without locks\n.*PEFTCLI_CACHE"):
        cached_store(tmp_path, "key", lambda directory: None)


def test_a_lock_that_is_a_link_leaves_what_it_points_at(run, tmp_path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("kept")
    run.path.mkdir()
    (run.path / ".lock").symlink_to(precious)
    with pytest.raises(UserError, match="output_dir"), run.locked():
        pass
    assert precious.read_text() == "kept"


def test_metrics_are_cut_to_a_step_and_a_torn_line_is_dropped(run) -> None:
    begun(run)
    for step in (0, 1, 2, 3):
        run.metrics.append({"step": step, "loss": float(step)})
    with open(run.metrics.path, "a") as file:
        file.write('{"step": 4, "lo')
    run.metrics.cut(2)
    assert [line["step"] for line in run.metrics.lines()] == [0, 1, 2]


def test_changed_keys_go_by_value_not_by_null() -> None:
    assert changed_keys({"a": {"b": 1, "c": None}}, {"a": {"b": 2}}) == ["a.b"]


def test_an_order_that_decides_is_compared_wherever_it_stands() -> None:
    one, other = {"a": 1, "b": 2}, {"b": 2, "a": 1}
    assert changed_keys({"training": {"lr_groups": one}}, {"training": {"lr_groups": other}}) == ["training.lr_groups"]
    left, right = ({"method": {"parts": [{"name": "lora", "rank_pattern": each}]}} for each in (one, other))
    assert changed_keys(left, right) == ["method.parts"] and changed_keys(left, left) == []
    assert changed_keys({"data": {"columns": one}}, {"data": {"columns": other}}) == []
    assert changed_keys({"training": {}}, {"training": {"lr_groups": {}}}) == []


def test_an_order_that_decides_in_a_method_of_a_plugin_is_compared(monkeypatch) -> None:
    class Params(MethodParams):
        name: Literal["mine"] = "mine"
        growth: Annotated[dict[str, int], IN_ORDER] = Field(default_factory=dict)
        colours: dict[str, int] = Field(default_factory=dict)

    known = {"mine": Params}.get
    monkeypatch.setattr(type(registry), "params_model", lambda _self, name: known(name))
    one, other = {"a": 1, "b": 2}, {"b": 2, "a": 1}
    left, right = ({"method": {"name": "mine", "growth": each, "colours": each}} for each in (one, other))
    assert changed_keys(left, right) == ["method.growth"]


def test_a_tree_survives_exactly(tmp_path) -> None:
    tree = {
        "optimizer": {"state": {0: {"step": torch.tensor(3.0), "m": torch.randn(2, 3)}}, "groups": [{"lr": 1e-4}]},
        "tuple": (1, "x", None, True, [2.5, (3,)]),
        "numpy": np.arange(5, dtype=np.uint32),
        "bf16": torch.randn(3).bfloat16(),
        "nan": float("nan"),
        "shared": [weight := torch.ones(2), weight],
    }
    save_tree(tmp_path, tree)
    back = load_tree(tmp_path)
    assert back["optimizer"]["state"][0]["step"] == 3.0
    assert torch.equal(back["optimizer"]["state"][0]["m"], tree["optimizer"]["state"][0]["m"])
    assert back["tuple"] == tree["tuple"]
    assert back["numpy"].dtype == np.uint32 and (back["numpy"] == tree["numpy"]).all()
    assert torch.equal(back["bf16"], tree["bf16"])
    assert math.isnan(back["nan"])
    with pytest.raises(TypeError, match="cannot hold set"):
        save_tree(tmp_path, {"a": {1}})


def test_a_tree_is_written_without_a_copy_of_its_tensors(tmp_path) -> None:
    weight, table = torch.randn(1000, 10), torch.randn(6, 4)
    views = {"rows": table[:3], "other rows": table[3:], "turned": table.t(), "whole": table, "empty": table[:0]}
    tree = {"parameters": {"w": weight.requires_grad_()}, "adapter": {"w": weight.detach()}, **views}
    tensors = tensor_tree._Tensors()
    tensor_tree._pack(tree, tensors)
    assert tensors.by_key["000000"].data_ptr() == weight.data_ptr()
    save_tree(tmp_path, tree)
    assert (tmp_path / "state.safetensors").stat().st_size < 1.1 * weight.nbytes
    back = load_tree(tmp_path)
    assert torch.equal(back["parameters"]["w"], weight) and torch.equal(back["adapter"]["w"], weight)
    assert all(torch.equal(back[name], view) for name, view in views.items())


def test_random_states_go_on_where_they_were(tmp_path) -> None:
    import random

    def draw() -> list[float]:
        return [random.random(), float(np.random.rand()), float(torch.rand(()))]

    seed_everything(3)
    draw()
    save_tree(tmp_path, random_states())
    wanted = draw()
    seed_everything(4)
    restore_random_states(load_tree(tmp_path))
    assert draw() == wanted


def tree_of(tree: dict, _directory: object) -> dict:
    return tree


def progress(best: int | None) -> dict:
    return {"progress": {"best_step": best}, "x": torch.ones(2)}


def test_only_the_newest_checkpoints_stay_and_the_best_that_they_name(tmp_path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step, best in ((10, 10), (20, 10), (30, 30), (40, 30)):
        if best == step:
            checkpoints.save_best(step, {"adapter": {"w": torch.full((1,), float(step))}})
        checkpoints.save(step, progress(best))
    assert sorted(p.name for p in checkpoints.directory.iterdir()) == ["best-000030", "step-000030", "step-000040"]
    assert checkpoints.load_best(30)["adapter"]["w"] == 30.0


def test_a_better_adapter_replaces_those_that_no_checkpoint_names(tmp_path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3):
        checkpoints.save_best(step, {"adapter": {}})
    assert checkpoints.bests() == [3]
    checkpoints.save(3, progress(3))
    for step in (4, 5):
        checkpoints.save_best(step, {"adapter": {}})
    assert checkpoints.bests() == [3, 5]


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=None)
    checkpoints.save(1, progress(None))
    checkpoints.save(2, {**progress(None), "x": torch.zeros(2)})
    file = checkpoints.directory / "step-000002" / "state.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\xff")
    notes: list[str] = []
    assert torch.equal(checkpoints.latest(notes.append, tree_of)["x"], torch.ones(2))
    assert "step-000002 is damaged: state.safetensors" in notes[0]
    (checkpoints.directory / "step-000001" / "manifest.json").unlink()
    with pytest.raises(UserError, match="every checkpoint of this run is damaged"):
        checkpoints.latest(notes.append, tree_of)


def test_half_a_checkpoint_does_not_count(tmp_path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=None)
    checkpoints.save(1, progress(None))
    (checkpoints.directory / ".partial-step-000002").mkdir()
    assert checkpoints.steps() == [1]
    checkpoints.save(3, progress(None))
    assert not (checkpoints.directory / ".partial-step-000002").exists()
    with pytest.raises(UserError, match="format 2"):
        manifest = checkpoints.directory / "step-000003" / "manifest.json"
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 2}))
        read_verified(manifest.parent)


def test_plots_are_well_formed_whatever_was_measured(tmp_path) -> None:
    from xml.etree import ElementTree

    lines = [
        {"step": 0, "eval_loss": 2.0, "eval_accuracy": 0.5},
        {"step": 1, "loss": 1.0, "learning_rate": 1e-3},
        {"step": 2, "loss": None, "learning_rate": 1e-3, "eval_loss": 1.0, "eval_accuracy": 1.0, "best": True},
    ]
    write_plots(tmp_path, lines)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["eval_accuracy.svg", "learning_rate.svg", "loss.svg"]
    for path in tmp_path.iterdir():
        ElementTree.parse(path)
    ElementTree.fromstring(curves_svg("a < b", {}))
