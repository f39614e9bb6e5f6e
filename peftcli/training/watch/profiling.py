"""`peft train --profile`: a trace of a few steps, and a short table of where time and memory went."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from peftcli.atomic import write_text
from peftcli.training.watch.profile_table import describe
from peftcli.write_errors import OTHER_RUN, writing

WARM_UP, MEASURED = 3, 3
"""Steps before measuring (allocators, kernels and caches settle), and measured ones, of a run that is long enough."""


@contextmanager
def profiled(
    directory: Path, device: torch.device, note: Callable[[str], None], steps: int | None = None
) -> Iterator[Callable[[], None]]:
    """Yield a function to call after each step; write profile/trace.json and table.txt when enough were measured.

    A run that is too short for `WARM_UP` + `MEASURED` steps measures its last ones; one that stops while steps are
    measured writes what it has.

    Args:
        directory: of the run.
        note: receives the table, and where the files are.
        steps: that the run still takes; None for more than enough.
    """
    left = WARM_UP + MEASURED if steps is None else steps
    if left < 1:
        note("nothing to profile: the run has no step left; --overwrite trains it again")
        yield lambda: None
        return
    measured = min(MEASURED, max(left - 1, 1))
    warm_up = min(WARM_UP, left - measured)
    cuda = device.type == "cuda"
    taken = 0

    def write(done: profile) -> None:
        count = min(taken, warm_up + measured) - warm_up
        if count < 1:
            note("nothing was profiled: the run stopped before a step could be measured")
            return
        out = directory / "profile"
        with writing(out, OTHER_RUN):
            out.mkdir(parents=True, exist_ok=True)
            done.export_chrome_trace(str(out / "trace.json"))
        before = f"after {warm_up} to warm up" if warm_up else "the first one, which also pays for warming up"
        head = f"profile of {count} step{'s' if count > 1 else ''}, {before}"
        table = describe(json.loads((out / "trace.json").read_text(encoding="utf-8")), cuda=cuda)
        write_text(out / "table.txt", f"{head}\n\n{table}\n", instead=OTHER_RUN)
        note(f"{head}\n\n{table}\n\n{out / 'table.txt'}; a timeline: {out / 'trace.json'} (open in ui.perfetto.dev)")

    def after_step() -> None:
        nonlocal taken
        taken += 1
        running.step()

    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if cuda else [])
    with warnings.catch_warnings():  # that there is no warm-up is said in the table
        warnings.filterwarnings("ignore", message="Profiler won't be using warmup")
        plan = schedule(wait=max(warm_up - 1, 0), warmup=min(warm_up, 1), active=measured, repeat=1)
    with profile(
        activities=activities, schedule=plan, on_trace_ready=write, profile_memory=True, record_shapes=True
    ) as running:
        yield after_step
