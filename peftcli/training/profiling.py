"""`peft train --profile`: a trace of a few steps, and a short table of where time and memory went."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

WARM_UP, MEASURED = 3, 3
"""Steps before measuring (allocators, kernels and caches settle), and measured ones."""
ROWS = 25


@contextmanager
def profiled(directory: Path, device: torch.device, note: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """Yield a function to call after each step; write profile/trace.json and table.txt when enough were measured.

    Args:
        directory: of the run.
        note: receives where the files are and the longest operation.
    """
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])

    def write(done: profile) -> None:
        out = directory / "profile"
        out.mkdir(parents=True, exist_ok=True)
        done.export_chrome_trace(str(out / "trace.json"))
        where = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
        events = done.key_averages()
        by_time = events.table(sort_by=where, row_limit=ROWS)
        memory = "self_cuda_memory_usage" if device.type == "cuda" else "self_cpu_memory_usage"
        text = f"time, {MEASURED} steps\n{by_time}\nmemory\n{events.table(sort_by=memory, row_limit=ROWS)}\n"
        (out / "table.txt").write_text(text, encoding="utf-8")
        note(f"profile of {MEASURED} steps: {out / 'table.txt'}, {out / 'trace.json'} (chrome://tracing)")

    steps = schedule(wait=1, warmup=WARM_UP - 1, active=MEASURED, repeat=1)
    with profile(activities=activities, schedule=steps, on_trace_ready=write, profile_memory=True) as running:
        yield running.step
