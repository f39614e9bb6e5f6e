"""`torch_compile: auto`: blocks are compiled in runs in which that saves more time than it costs, as a trial finds.

Compiled blocks take other paths than those of `fast_paths`, and whether they are faster depends on processor, model
and rows. So the first steps of the run are taken in processes of their own, first as they are, then compiled, where
the run is long enough for a gain to pay. What the trial found is kept for this machine (`machine_answers`), what it
compiled in torch's own cache: the next such run measures nothing, and compiles in less time.

In a run of several processes the main one makes the trial, and the others wait for its answer, which holds for all.
They sleep meanwhile (gloo waits without spinning), and a group waits for hours (`processes.GROUP_HOURS`). The steps of
the trial are those of one process, with its threads. The sum of the gradients over the processes is not in them; it
takes the same time either way, so that what is saved is as much.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from peftcli.assembly.machine_answers import Answer, about_steps, keep_answer, kept_answer, machine
from peftcli.distributed.processes import World
from peftcli.distributed.usable_cores import usable_cores
from peftcli.errors import UserError
from peftcli.models.anatomy import Anatomy
from peftcli.recipe.load_recipe import LoadedRecipe
from peftcli.recipe.schema import Recipe
from peftcli.recipe.yaml.dump_recipe import dump_recipe
from peftcli.record.shown_numbers import duration
from peftcli.training.speed.compiled_blocks import NOTE, compile_problems
from peftcli.training.speed.own_process import ask

COUNTED = 4
"""The last steps of each side, whose speed counts."""
TIMED_STEPS = "peftcli.training.speed.timed_steps"
"""The module that takes them; it imports all that trains, this one among it."""
LEAST_GAIN = 1.05
"""How much faster compiled steps must be; less can be what two measurements differ by."""
WORTH_A_TRIAL = 1800.0
"""Seconds that a run must take, as its plain steps tell: of a shorter one a trial takes a tenth and more."""
WORTH_A_LOOK = 600.0
"""Seconds that its arithmetic alone takes at the peak of the device, before anything is measured."""
LONGEST_TRIAL = 0.1
"""Share of a run that compiling and the compiled steps of the trial may take."""
PEAKS: dict[str, float] = {"cpu": 1e11, "cuda": 4e14}
"""Operations a second of a core and of a GPU, at the upper end."""
_AUTO = "torch_compile: auto"
_IF_AS_LONG = " (if its other rows are as long as the first ones)"


@dataclass(frozen=True)
class Work:
    """What each process of a run has to do.

    Args:
        tokens: of all its steps; of a stream, whose rows are not measured before they are read, at most so many.
        layers: blocks of the model; `width`: its hidden size.
        steps: of a stream; None where the tokens are known.
    """

    tokens: float
    layers: int
    width: int
    steps: int | None = None

    @classmethod
    def of(cls, tokens: float, anatomy: Anatomy, steps: int | None = None) -> Work:
        """Return the work of so many tokens in a model."""
        return cls(tokens, sum(map(len, anatomy.layers.values())), anatomy.hidden_size, steps)

    def seconds(self, plain: Measured) -> float:
        """Return the seconds of all steps by what some took; of a stream they are taken to have as many tokens each."""
        tokens = self.tokens if self.steps is None else min(self.tokens, self.steps * plain.in_a_step)
        return tokens * plain.of_a_token

    def least_seconds(self, device: torch.device) -> float:
        """Return the seconds that the products of the frozen blocks take at least: forward, and back to the inputs."""
        peak = PEAKS[device.type] * (_threads() if device.type == "cpu" else 1)
        return 4 * 12 * self.layers * self.width**2 * self.tokens / peak


@dataclass(frozen=True)
class Measured:
    """What some steps took.

    Args:
        of_a_token: seconds of a token in steady steps.
        cost: seconds that the first steps took beyond that.
        in_a_step: tokens of a step, on average.
    """

    of_a_token: float
    cost: float
    in_a_step: float


@dataclass(frozen=True)
class Compiling:
    """What was decided: whether blocks are compiled, and what to tell of it."""

    on: bool
    note: str | None = None


def decide_compiling(
    loaded: LoadedRecipe, work: Work, world: World, recorded: bool | None, note: Callable[[str], None]
) -> Compiling:
    """Return whether a run compiles its blocks: what the recipe says, or what a trial finds if that leaves it open.

    Every process must call this; the main one decides for all.

    Args:
        work: of each process.
        recorded: what an earlier part of this run did: a resumed run goes on the same way.
        note: told before steps are tried.
    """
    asked = loaded.recipe.training.torch_compile
    decided = recorded if asked == "auto" else asked
    if decided is not None:
        return Compiling(decided, NOTE if decided else None)
    if world.strategy.sharded:
        return _plain("a trial has the whole base, and here it is divided among the processes; true compiles here, too")
    if world.device.type not in PEAKS:
        return _plain(f"it has no trial on {world.device.type}")
    # a run may be on several machines
    for problems in world.gather([problem.message for problem in compile_problems(True, world.device.type)]):
        for message in problems:
            return _plain(message)
    return world.from_main(lambda: _found(loaded, work, world, note))


def _found(loaded: LoadedRecipe, work: Work, world: World, note: Callable[[str], None]) -> Compiling:
    """Return what an earlier trial found, or one that is made now if the run may be long enough for it."""
    device = world.device
    if (least := work.least_seconds(device)) < WORTH_A_LOOK:
        return _plain(f"this run is too short for it to pay (its products take {duration(least)} at full speed)")
    question = _question(loaded.recipe, work, device)
    known = kept_answer(question)
    if known is None:
        others = f" (in a process of its own; the {world.size} of this run wait)" if world.size > 1 else ""
        note(f"{_AUTO} takes a few steps first, with uncompiled and with compiled blocks, and measures both{others}")
        return _tried(loaded, work, question, world.size)
    found = f"an earlier trial found them {known.ratio:.2f} times as fast here"
    return Compiling(True, f"{_AUTO} compiles the blocks: {found}") if known.faster else _plain(found)


def _threads() -> int:
    """Return the cores that a process of this run computes on: several on a machine share them."""
    return min(usable_cores(), torch.get_num_threads())


def _plain(reason: str) -> Compiling:
    return Compiling(False, f"{_AUTO} leaves the blocks uncompiled: {reason}")


def _question(recipe: Recipe, work: Work, device: torch.device) -> dict[str, str]:
    """Return what the gain depends on."""
    shape = {"layers": work.layers, "hidden_size": work.width}
    about = {**about_steps(recipe), "shape": shape, "cores": _threads() if device.type == "cpu" else None}
    return {"asked": "compiled blocks", **machine(device), "about": json.dumps(about, sort_keys=True)}


def _tried(loaded: LoadedRecipe, work: Work, question: dict[str, str], processes: int) -> Compiling:
    """Measure both sides; keep what was found, and return what it says of a run of so many processes."""
    try:
        plain = _measured(loaded, compiled=False)
        whole = work.seconds(plain)
        about = f"about {duration(whole)}{_IF_AS_LONG * (work.steps is not None)}"
        if whole < WORTH_A_TRIAL:
            return _plain(f"this run takes {about}, which is too short for it to pay")
        compiled = _measured(loaded, compiled=True, seconds=whole * LONGEST_TRIAL)
    except UserError as error:
        return _plain(f"measuring steps failed: {error.problems[0].message}")
    ratio = plain.of_a_token / compiled.of_a_token
    alone = f" in one process alone, without the sums over the {processes} of this run" if processes > 1 else ""
    keep_answer(question, Answer(faster=ratio >= LEAST_GAIN, ratio=ratio))
    saved, found = whole * (1 - 1 / ratio), f"compiled steps are {ratio:.2f} times as fast{alone}"
    if ratio < LEAST_GAIN:
        return _plain(found)
    gain = f"{found}: of {about} they save {duration(saved)}, and compiling takes {duration(compiled.cost)}"
    return Compiling(True, f"{_AUTO} compiles the blocks: {gain}") if saved > compiled.cost else _plain(gain)


def _measured(loaded: LoadedRecipe, *, compiled: bool, seconds: float | None = None) -> Measured:
    """Take the first steps of a run, and return what they took.

    Raises:
        UserError: the steps failed, or took longer than `seconds`.
    """
    with TemporaryDirectory() as made:
        recipe = Path(made) / "recipe.yaml"
        recipe.write_text(dump_recipe(loaded.recipe, loaded.tree), encoding="utf-8")
        changes = [f"output_dir={json.dumps(str(Path(made) / 'run'))}"]
        changes.append(f"training.torch_compile={json.dumps(compiled)}")
        steps = ask(TIMED_STEPS, [str(recipe), *changes], seconds=seconds)
    first, last = steps[:-COUNTED], steps[-COUNTED:]
    steady = statistics.median(took / max(1.0, tokens) for tokens, took in last)
    in_a_step = statistics.mean(tokens for tokens, _ in steps)
    return Measured(steady, sum(took - tokens * steady for tokens, took in first), in_a_step)


def without_trial(loaded: LoadedRecipe, note: Callable[[str], None]) -> LoadedRecipe:
    """Return the recipe with uncompiled blocks where it leaves that open, and say so: for steps outside of a run."""
    if loaded.recipe.training.torch_compile != "auto":
        return loaded
    note(f"{_AUTO} is decided when the run starts; here the blocks are uncompiled")
    return loaded.with_training(torch_compile=False)
