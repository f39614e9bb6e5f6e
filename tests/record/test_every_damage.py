"""Every file of a run directory, damaged in every way: the run goes on and ends the same, or the file is named."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from peftcli.errors import Stopped, UserError
from peftcli.inference.open_run import find_run
from peftcli.recipe.load_recipe import LoadedRecipe
from peftcli.record.run_directory import RunDirectory
from peftcli.training.run import train
from tests.recipes import CtrlC, Recorder, recipes_in

BYTES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda content: content[: len(content) // 2].rstrip(),
    "emptied": lambda _: b"",
    "zeros": lambda content: bytes(len(content)),
    "a bit flipped": lambda content: content[:-9] + bytes([content[-9] ^ 4]) + content[-8:],
    "not UTF-8": lambda content: b"\xff" + content,
}
JSON: dict[str, Callable[[bytes], bytes]] = {
    "null": lambda _: b"null\n",
    "a list": lambda _: b"[]\n",
    "another object": lambda _: b'{"a": {"b": [1]}}\n',
    "nested deeply": lambda _: b"[" * 100_000 + b"\n",
    "null for each number": lambda content: content.replace(b": 1", b': null, "x": 1'),
    "a list for each object": lambda content: content.replace(b": {", b': [1], "x": {'),
    "a number that is too large": lambda content: content.replace(b": 1", b": 1" + b"0" * 400),
}
NEWEST, OLDER, BEST = "checkpoints/step-000005", "checkpoints/step-000003", "checkpoints/best-000002"
STATE = ("manifest.json", "state.json", "state.safetensors")


def damages(name: str) -> list[str]:
    return ["deleted", *BYTES, *(JSON if name.endswith((".json", ".jsonl")) else [])]


def damage(path: Path, how: str) -> bool:
    """Damage a file; return whether that changed it."""
    before = path.read_bytes()
    if how == "deleted":
        path.unlink()
        return True
    path.write_bytes((BYTES | JSON)[how](before))
    return path.read_bytes() != before


@dataclass(frozen=True)
class Kept:
    """A run's directory, a copy of it as it was, and the adapter that the run ends with."""

    loaded: LoadedRecipe
    out: Path
    copy: Path
    adapter: str

    def restored(self) -> RunDirectory:
        shutil.rmtree(self.out)
        shutil.copytree(self.copy, self.out)
        return RunDirectory(self.out)


def adapter_of(out: Path) -> str:
    return hashlib.sha256((out / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, models) -> Kept:
    """A run of 6 steps, stopped after the fifth. The best adapter is that of step 2, whose checkpoint is gone."""
    folder = tmp_path_factory.mktemp("stopped")
    loaded = recipes_in(folder, models)(
        data__val_set_size=4, training__eval_steps=2, training__save_steps=3, training__greater_is_better=True,
        training__eval_generate=1, training__max_new_tokens=2,
    )  # fmt: skip
    out = Path(loaded.recipe.output_dir)
    with pytest.raises(Stopped):
        train(loaded, reporter=CtrlC(5))
    shutil.copytree(out, folder / "copy")
    assert train(loaded, resume=True).best_step == 2
    return Kept(loaded, out, folder / "copy", adapter_of(out))


def first(tree: Any, directory: Path) -> str:
    return directory.name if "parameters" in tree else "another kind of tree"


@pytest.mark.parametrize("name", STATE)
def test_a_damaged_checkpoint_is_passed_over(stopped, name: str) -> None:
    for how in damages(name):
        checkpoints = stopped.restored().checkpoints(keep=1)
        if not damage(stopped.out / NEWEST / name, how):
            continue
        notes: list[str] = []
        assert checkpoints.latest(notes.append, first) == "step-000003", how
        assert len(notes) == 1 and NEWEST in notes[0] and name in notes[0] and "\n" not in notes[0], (how, notes)
        assert checkpoints.find_best(2) is None
        checkpoints.prune()  # and is in no later step's way


@pytest.mark.parametrize("name", STATE)
def test_a_damaged_best_adapter_is_found(stopped, name: str) -> None:
    for how in damages(name):
        checkpoints = stopped.restored().checkpoints()
        if not damage(stopped.out / BEST / name, how):
            continue
        assert BEST in (checkpoints.find_best(2) or ""), how


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.jsonl"])
def test_damaged_lines_are_dropped_and_told(stopped, name: str) -> None:
    whole = (stopped.copy / name).read_text(encoding="utf-8").splitlines()
    for how in damages(name):
        run = stopped.restored()
        if not damage(stopped.out / name, how):
            continue
        lines = run.metrics if name == "metrics.jsonl" else run.samples
        told = lines.cut(5)
        left = [json.dumps(line) for line in lines.lines()]
        if how not in ("null for each number", "a number that is too large", "a bit flipped"):
            assert set(left) <= {json.dumps(json.loads(line)) for line in whole}, how
        unsaid = how in ("deleted", "emptied", "cut", "zeros", "a bit flipped") or "number" in how
        assert unsaid or f"{name}: line 1 dropped" in told or f"{name}: lines 1, " in told, (how, told)


def test_a_run_goes_on_whatever_is_damaged_at_once(stopped) -> None:
    stopped.restored()
    assert damage(stopped.out / NEWEST / "state.safetensors", "a bit flipped")
    assert damage(stopped.out / "metrics.jsonl", "not UTF-8") and damage(stopped.out / "samples.jsonl", "not UTF-8")
    reporter = Recorder()
    train(stopped.loaded, resume=True, reporter=reporter)
    assert adapter_of(stopped.out) == stopped.adapter
    assert any("state.safetensors is not what was written; going back" in note for note in reporter.notes)
    assert any("metrics.jsonl: line 1 dropped" in note for note in reporter.notes)
    whole = [json.loads(line) for line in (stopped.copy / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    kept = [json.loads(line) for line in (stopped.out / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in whole] == [2, 4] and [line["step"] for line in kept] == [4, 6]  # 4 is there once


def test_a_lost_best_adapter_is_told_first_and_the_run_is_finished(stopped) -> None:
    stopped.restored()
    shutil.rmtree(stopped.out / BEST)
    reporter = Recorder()
    summary = train(stopped.loaded, resume=True, reporter=reporter)
    assert any("(step 2) is lost; the best one from step 5 on is kept" in note for note in reporter.notes)
    assert summary.best_step == 5 and summary.eval["eval_loss"] > 0


def test_a_result_is_not_replaced_by_a_worse_one(stopped, tmp_path: Path) -> None:
    stopped.restored()
    shutil.rmtree(stopped.out / BEST)
    (stopped.out / "adapter").mkdir()
    with pytest.raises(UserError, match=r"move .*adapter to another place, then --resume"):
        train(stopped.loaded, resume=True)
    shutil.move(stopped.out / "adapter", tmp_path)
    assert train(stopped.loaded, resume=True).status == "finished"


def test_a_damaged_recipe_is_named(stopped) -> None:
    for how in damages("recipe.yaml"):
        stopped.restored()
        if damage(stopped.out / "recipe.yaml", how):
            with pytest.raises(UserError, match=r"recipe\.yaml") as caught:
                train(stopped.loaded, resume=True)
            assert "--overwrite" in str(caught.value), how
            assert sorted(path.name for path in (stopped.out / "checkpoints").iterdir()) == [
                BEST.split("/")[1], OLDER.split("/")[1], NEWEST.split("/")[1]
            ]  # fmt: skip


@pytest.fixture(scope="module")
def finished(stopped, tmp_path_factory) -> Kept:
    stopped.restored()
    train(stopped.loaded, resume=True)
    copy = tmp_path_factory.mktemp("finished") / "copy"
    shutil.copytree(stopped.out, copy)
    return Kept(stopped.loaded, stopped.out, copy, stopped.adapter)


@pytest.mark.parametrize(
    "name",
    ["recipe.yaml", "summary.json", "metrics.jsonl", "samples.jsonl", "plots/loss.svg", f"{OLDER[:-1]}6/state.json"],
)
def test_a_finished_run_is_used_or_the_file_is_named(finished, name: str) -> None:
    for how in damages(name):
        finished.restored()
        if not damage(finished.out / name, how) or (name, how) == ("summary.json", "deleted"):
            continue
        try:
            assert train(finished.loaded).steps == 6, how
        except UserError as error:
            assert name in ("recipe.yaml", "summary.json") and name in str(error), (how, error)
            assert "--overwrite" in str(error), (how, error)
        try:
            assert find_run(finished.out).saved is not None
            assert (name, how) != ("recipe.yaml", "cut")  # what is left is a recipe, with other settings
        except UserError as error:
            assert name == "recipe.yaml" and name in str(error), (how, error)
        assert adapter_of(finished.out) == finished.adapter
