"""One of two processes of a run with `torch_compile: auto`, which a launcher started with OUT and RECIPE.

Sleeps stand for the measurements, of which the compiled side is found twice as fast; what is compiled is only traced.
Each process writes, beside OUT, what it measured, how long it took to decide by the clock and of a processor, and with
what it trained.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from pathlib import Path
from typing import Any

from torch import nn

from peftcli.names import NAMES
from peftcli.recipe.load_recipe import load_recipe
from peftcli.training import before_weights
from peftcli.training.run import train
from peftcli.training.speed import compile_trial
from peftcli.training.speed.compile_trial import Compiling, Measured, decide_compiling
from tests.recipes import Recorder

SECONDS = 1.5
"""That each side takes to measure."""
found: dict[str, Any] = {"asked": []}


def measured(_loaded: object, *, compiled: bool, seconds: float | None = None) -> Measured:
    """Take a while, and find compiled blocks twice as fast."""
    found["asked"].append("compiled" if compiled else "plain")
    time.sleep(SECONDS)
    return Measured(0.5 if compiled else 1.0, 1.0, 100.0)


def decided(*arguments: Any) -> Compiling:
    """Decide, and note what of the clock and of a processor that takes."""
    clock, busy = time.perf_counter(), time.process_time()
    answer = decide_compiling(*arguments)
    found.update(seconds=time.perf_counter() - clock, busy=time.process_time() - busy, on=answer.on)
    return answer


def main(out: str, recipe: str) -> None:
    """Train the recipe, and write what was found."""
    compile_trial._measured = measured
    compile_trial.WORTH_A_LOOK = compile_trial.WORTH_A_TRIAL = 0.0
    before_weights.decide_compiling = decided
    nn.Module.compile = functools.partialmethod(nn.Module.compile, backend="aot_eager")  # type: ignore[assignment]
    recorder = Recorder()
    summary = train(load_recipe(recipe, [], NAMES), reporter=recorder)
    found.update(notes=recorder.notes, decision=summary.inputs["decisions"]["compiled blocks"])
    rank = "0" if recorder.notes else "1"  # the main process alone reports
    Path(f"{out}.{rank}").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
