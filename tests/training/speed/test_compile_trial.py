"""`torch_compile: auto`: what decides whether blocks are compiled, that the decision holds for the run, and that it is
told. The measurement itself, with a C++ compiler, is a slow test.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from peftcli.distributed.launching import launch
from peftcli.distributed.processes import World
from peftcli.distributed.strategy import Strategy
from peftcli.errors import UserError
from peftcli.locations import CACHE_VARIABLE
from peftcli.recipe.load_recipe import LoadedRecipe
from peftcli.training.run import rehearse, train
from peftcli.training.speed import compile_trial, compiled_blocks, own_process
from peftcli.training.speed.compile_trial import Compiling, Measured, Work, decide_compiling
from tests.recipes import CtrlC, Recorder, chat_rows
from tests.training.speed.trial_for_several import SECONDS

CPU = torch.device("cpu")
HOURS = Work(tokens=1e9, layers=30, width=576)
"""Of which the arithmetic alone takes an hour and more."""
IN_A_STEP = 1000.0
"""Tokens of each step that is measured."""


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "answers"))


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Have both sides take the given seconds a token; return the sides that were asked, in order."""

    def give(plain: float, compiled: float | UserError, cost: float = 60.0) -> list[str]:
        asked: list[str] = []

        def measure(_loaded: LoadedRecipe, *, compiled: bool, seconds: float | None = None) -> Measured:
            asked.append("compiled" if compiled else "plain")
            if not compiled:
                return Measured(plain, 0.0, IN_A_STEP)
            assert seconds == pytest.approx(0.1 * HOURS.tokens * plain)
            if isinstance(of_compiled, UserError):
                raise of_compiled
            return Measured(of_compiled, cost, IN_A_STEP)

        of_compiled = compiled
        monkeypatch.setattr(compile_trial, "_measured", measure)
        return asked

    return give


class MainOfTwo(World):
    """The main process of two; of the other one it is known what its machine lacks."""

    def __init__(self, *lacks: str) -> None:
        super().__init__(CPU)
        self.size, self.lacks = 2, list(lacks)

    def gather(self, value: Any) -> list[Any]:
        return [value, self.lacks]

    def broadcast(self, value: Any) -> Any:
        return value


def divided() -> World:
    world = World(CPU)
    world.strategy = Strategy("fsdp")
    return world


def decide(loaded: LoadedRecipe, work: Work = HOURS, /, *, world: World | None = None, **changes: Any) -> Compiling:
    how: dict[str, Any] = {"recorded": None, "note": lambda _text: None, **changes}
    return decide_compiling(loaded, work, world or World(CPU), **how)


HOUR = 3600.0 / HOURS.tokens
"""Seconds a token of a run of an hour."""


@pytest.mark.parametrize(
    ("plain", "compiled", "cost", "on", "words"),
    [
        (HOUR, HOUR / 1.25, 60.0, True, "1.25 times as fast: of about 1 h 00 min they save 12 min 00 s"),
        (HOUR, HOUR / 1.25, 721.0, False, "compiling takes 12 min 01 s"),
        (HOUR, HOUR / 1.04, 1.0, False, "1.04 times as fast"),
        (HOUR, HOUR * 2, 1.0, False, "0.50 times as fast"),
    ],
    ids=["pays", "costs more", "within noise", "slower"],
)
def test_what_is_saved_is_weighed_against_what_compiling_takes(
    recipe, measured, plain: float, compiled: float, cost: float, on: bool, words: str
) -> None:
    measured(plain, compiled, cost)
    found = decide(recipe(training__torch_compile="auto"))
    assert found.on is on
    assert words in str(found.note)
    assert ("compiles the blocks" in str(found.note)) is on


def test_a_run_that_turns_out_short_is_not_tried_with_compiled_blocks(recipe, measured) -> None:
    asked = measured(HOUR / 3, HOUR / 30)
    found = decide(recipe(training__torch_compile="auto"))
    assert not found.on
    assert "takes about 20 min 00 s, which is too short" in str(found.note)
    assert asked == ["plain"]


@pytest.mark.parametrize(("steps", "on"), [(10**6, True), (10**5, False)], ids=["rows as long", "shorter rows"])
def test_a_stream_is_taken_to_be_as_long_as_its_first_steps(recipe, measured, steps: int, on: bool) -> None:
    """Its rows are not measured before they are read: with max_length for each, minutes would count as hours."""
    measured(HOUR, HOUR / 1.25)
    stream = Work(tokens=10 * HOURS.tokens, layers=30, width=576, steps=steps)
    found = decide(recipe(training__torch_compile="auto"), stream)
    assert found.on is on
    if on:
        told = "of about 1 h 00 min (if its other rows are as long as the first ones) they save 12 min 00 s"
    else:
        told = "takes about 6 min 00 s (if its other rows are as long as the first ones), which is too short"
    assert told in str(found.note)


def test_steps_that_fail_leave_the_blocks_uncompiled_and_are_tried_again(recipe, measured) -> None:
    measured(HOUR, UserError("the compiler was killed", suggestion="buy memory"))
    loaded = recipe(training__torch_compile="auto")
    found = decide(loaded)
    assert (found.on, "measuring steps failed: the compiler was killed" in str(found.note)) == (False, True)
    assert "buy" not in str(found.note)
    assert measured(HOUR, HOUR / 2) == []
    assert decide(loaded).on


def test_what_one_trial_found_holds_for_later_runs_of_the_same_kind(recipe, measured) -> None:
    measured(HOUR, HOUR / 1.2)
    notes: list[str] = []
    loaded = recipe(training__torch_compile="auto")
    assert decide(loaded, note=notes.append).on
    assert "takes a few steps first" in notes[0]
    asked = measured(HOUR, HOUR)
    again = decide(loaded)
    assert again.on
    assert "an earlier trial found them 1.20 times as fast" in str(again.note)
    assert asked == []
    other = recipe(training__torch_compile="auto", training__per_device_train_batch_size=2)
    assert not decide(other).on
    assert asked == ["plain", "compiled"]


@pytest.mark.parametrize(
    ("work", "world", "words"),
    [
        (HOURS, divided, "divided among the processes"),
        (HOURS, lambda: MainOfTwo("torch.compile needs a C++ compiler"), "needs a C++ compiler"),
        (HOURS, lambda: World(torch.device("mps")), "no trial on mps"),
        (Work(1e4, 2, 32), lambda: World(CPU), "too short"),
    ],
    ids=["divided base", "no compiler on another machine", "mps", "short"],
)
def test_nothing_is_measured_where_nothing_can_be_gained(
    recipe, measured, work: Work, world: Callable[[], World], words: str
) -> None:
    asked = measured(HOUR, HOUR / 2)
    found = decide(recipe(training__torch_compile="auto"), work, world=world())
    assert (found.on, words in str(found.note), asked) == (False, True, [])


def test_a_note_of_several_processes_says_what_was_not_measured(recipe, measured) -> None:
    measured(HOUR, HOUR / 1.25)
    notes: list[str] = []
    found = decide(recipe(training__torch_compile="auto"), world=MainOfTwo(), note=notes.append)
    assert found.on
    assert "1.25 times as fast in one process alone, without the sums over the 2 of this run: of" in str(found.note)
    assert "(in a process of its own; the 2 of this run wait)" in notes[0]


def test_of_two_processes_one_measures_and_both_compile(recipe, tmp_path: Path) -> None:
    """The other one sleeps meanwhile: it would take a core from the trial."""
    loaded = recipe(training__torch_compile="auto", training__max_steps=3)
    script = ["-m", "tests.training.speed.trial_for_several", str(tmp_path / "found"), str(loaded.path)]
    assert launch([sys.executable, *script], 2) == 0
    main, other = (json.loads((tmp_path / f"found.{rank}").read_text()) for rank in range(2))
    assert (main["asked"], other["asked"]) == (["plain", "compiled"], [])
    assert [(one["on"], one["decision"]) for one in (main, other)] == [(True, "on")] * 2
    assert any("auto compiles the blocks" in note for note in main["notes"])
    assert other["seconds"] > 2 * SECONDS - 0.5 > 5 * other["busy"]


def test_a_missing_compiler_is_no_error_under_auto(recipe, measured, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = measured(HOUR, HOUR / 2)
    monkeypatch.setenv("CXX", "/nowhere/g++")
    loaded = recipe(training__torch_compile="auto")
    found = decide(loaded)
    assert (found.on, "C++ compiler" in str(found.note), asked) == (False, True, [])
    recorder = Recorder()
    train(loaded, reporter=recorder)
    assert any("torch_compile: auto leaves the blocks uncompiled" in note for note in recorder.notes)


def test_what_the_recipe_says_and_what_the_run_did_before_are_not_asked_about(recipe, measured) -> None:
    asked = measured(HOUR, HOUR / 2)
    note = compiled_blocks.NOTE
    assert decide(recipe(training__torch_compile=True)) == Compiling(True, note)
    assert decide(recipe()) == Compiling(False)
    assert decide(recipe(training__torch_compile="auto"), recorded=True) == Compiling(True, note)
    assert decide(recipe(training__torch_compile="auto"), recorded=False) == Compiling(False)
    assert asked == []


def test_a_run_goes_on_with_what_was_decided_when_it_began(recipe, measured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn.Module, "compile", functools.partialmethod(nn.Module.compile, backend="aot_eager"))
    monkeypatch.setattr(compile_trial, "WORTH_A_LOOK", 0.0)
    monkeypatch.setattr(compile_trial, "WORTH_A_TRIAL", 0.0)
    monkeypatch.setattr(Work, "of", lambda *_: HOURS)
    measured(HOUR, HOUR / 1.5)
    changes = {"method": {"name": "lora", "r": 4, "target_modules": "all-linear"}, "training__save_steps": 2}
    compiled = Recorder()
    train(recipe(name="compiled", training__torch_compile=True, **changes), reporter=compiled)
    loaded = recipe(name="auto", training__torch_compile="auto", **changes)
    first, rest = CtrlC(at=4), Recorder()
    with pytest.raises(Exception, match="stopped after step 4"):
        train(loaded, reporter=first)
    assert any("compiles the blocks" in note for note in first.notes)
    asked = measured(HOUR, HOUR * 2)
    shutil.rmtree(os.environ[CACHE_VARIABLE])
    train(loaded, reporter=rest, resume=True)
    assert compiled_blocks.NOTE in rest.notes
    assert asked == []
    assert [*first.losses, *rest.losses] == pytest.approx(compiled.losses, abs=1e-5)
    assert rest.summary is not None
    assert rest.summary.inputs["decisions"]["compiled blocks"] == "on"
    written = (Path(rest.summary.output_dir) / "recipe.yaml").read_text()
    assert "torch_compile: auto" in written


def test_a_dry_run_and_measured_steps_try_nothing(recipe, measured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_trial, "WORTH_A_LOOK", 0.0)
    asked = measured(HOUR, HOUR / 2)
    notes = Recorder()
    rehearse(recipe(training__torch_compile="auto"), reporter=notes)
    assert asked == []
    assert any("decided when the run starts" in note for note in notes.notes)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_steps_are_measured_in_processes_of_their_own(recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sides for real: the tiny model's steps are short, and compiling takes many times as long."""
    monkeypatch.setattr(compile_trial, "WORTH_A_LOOK", 0.0)
    monkeypatch.setattr(compile_trial, "WORTH_A_TRIAL", 0.0)
    monkeypatch.setattr(compile_trial, "LONGEST_TRIAL", 1e6)
    recorder = Recorder()
    rows = chat_rows(64)
    train(recipe("llama", "causal_lm", rows, training__torch_compile="auto", training__max_steps=12), reporter=recorder)
    (told,) = [note for note in recorder.notes if "the blocks" in note and "auto" in note]
    assert "times as fast" in told, told
    assert recorder.summary is not None
    assert recorder.summary.inputs["decisions"]["compiled blocks"] == "off"  # a second saved, for many spent


def test_a_process_that_is_asked_tells_what_is_wrong(recipe) -> None:
    loaded = recipe()
    with pytest.raises(UserError, match="nowhere") as caught:
        own_process.ask(compile_trial.TIMED_STEPS, [loaded.path, "data.path=nowhere.jsonl"])
    assert not isinstance(caught.value, own_process.ProcessFailed)
