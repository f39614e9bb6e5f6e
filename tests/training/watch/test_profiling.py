"""`--profile`: whole steps are measured and counted truly, in a trace that opens and a table that fits the terminal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from peftcli.training.run import train
from peftcli.training.watch.profile_table import describe
from tests.recipes import Recorder


def profile_of(loaded: Any) -> Path:
    return Path(loaded.recipe.output_dir) / "profile"


def measured_steps(loaded: Any) -> int:
    """Return the number of steps in the trace, which must be as Chrome's format wants it."""
    events = json.loads((profile_of(loaded) / "trace.json").read_text(encoding="utf-8"))["traceEvents"]
    assert all(event["ph"] and (event["ph"] == "M" or event["ts"] >= 0) for event in events)
    return sum(event["ph"] == "X" and str(event["name"]).startswith("ProfilerStep#") for event in events)


@pytest.mark.parametrize(
    ("steps", "measured", "warm_up"),
    [(8, 3, "after 3 to warm up"), (4, 3, "after 1 to warm up"), (1, 1, "the first one, which also pays")],
)
def test_a_run_of_any_length_is_measured_and_says_how_much(recipe, recorder, steps, measured, warm_up) -> None:
    loaded = recipe(training__max_steps=steps)
    train(loaded, reporter=recorder, profile=True)
    assert measured_steps(loaded) == measured
    (note,) = (note for note in recorder.notes if "profile" in note)
    assert note.startswith(f"profile of {measured} step{'s' if measured > 1 else ''}, {warm_up}")
    table = (profile_of(loaded) / "table.txt").read_text(encoding="utf-8")
    assert table.strip() in note
    lines = table.splitlines()
    assert max(map(len, lines)) <= 100
    assert len(lines) <= 40
    for word in ("forward", "backward", "optimizer", "between operations", "mm", "at its peak"):
        assert word in table


def test_phases_share_the_whole_step(recipe, recorder) -> None:
    loaded = recipe(training__max_steps=6)
    train(loaded, reporter=recorder, profile=True)
    table = (profile_of(loaded) / "table.txt").read_text(encoding="utf-8")
    phases = table.split("where time went")[1].split("\n\n")[0].splitlines()[1:]
    shares = [float(line.split()[-1].rstrip("%")) for line in phases]
    assert len(shares) == 4
    assert sum(shares) == pytest.approx(100, abs=0.5)
    assert min(shares) > 0


def test_a_resumed_run_profiles_the_steps_that_are_left(recipe, recorder) -> None:
    loaded = recipe(training__max_steps=6, training__save_steps=3)

    class Stops(Recorder):
        def step(self, record: Any) -> None:
            if record.step == 4:
                raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        train(loaded, reporter=Stops())
    train(loaded, reporter=recorder, resume=True, profile=True)
    assert measured_steps(loaded) == 2
    assert any(note.startswith("profile of 2 steps, after 1 to warm up") for note in recorder.notes)


def test_a_run_that_stops_early_writes_what_it_measured_or_says_that_nothing_was(recipe) -> None:
    class Stops(Recorder):
        def __init__(self, last: int) -> None:
            super().__init__()
            self.last = last

        def step(self, record: Any) -> None:
            if record.step == self.last:
                raise RuntimeError("power cut")

    for last, told in ((6, "profile of 2 steps"), (3, "nothing was profiled")):
        reporter = Stops(last)
        loaded = recipe(name=f"to{last}", training__max_steps=20)
        with pytest.raises(RuntimeError, match="power cut"):
            train(loaded, reporter=reporter, profile=True)
        assert any(note.startswith(told) for note in reporter.notes) == (last == 6)
        assert (profile_of(loaded) / "table.txt").exists() == (last == 6)


def event(name: str, start: float, length: float, identity: int, **changes: Any) -> dict[str, Any]:
    plain = {"ph": "X", "cat": "cpu_op", "name": name, "tid": 1, "ts": start, "dur": length}
    return {**plain, "args": {"External id": identity}, **changes}


def memory(at: float, size: int, address: int, device: int = 0) -> dict[str, Any]:
    about = {"Bytes": size, "Addr": address, "Device Type": device, "Ev Idx": at}
    return {"ph": "i", "cat": "cpu_instant_event", "name": "[memory]", "tid": 1, "ts": at, "args": about}


TRACE = {
    "traceEvents": [
        event("ProfilerStep#3", 0, 10_000, 1, cat="user_annotation"),
        event("aten::linear", 1000, 4000, 2),
        event("aten::addmm", 1500, 3000, 3, args={"External id": 3, "Input Dims": [[50], [100, 290], [290, 50]]}),
        event("aten::copy_", 1500, 0, 8, tid=2),  # in another thread, at the same time
        event("aten::empty", 1600, 100, 4),
        event("autograd::engine::evaluate_function: AddmmBackward0", 6000, 2000, 5),
        event("aten::mm", 6500, 1000, 6),
        event("Optimizer.step#AdamW.step", 9000, 500, 7, cat="user_annotation"),
        memory(1650, 5_000_000, 100),
        memory(6600, 2_000_000, 200),
        memory(6700, -5_000_000, 100),
        memory(6800, 1_000_000, 300),
        {"ph": "X", "cat": "kernel", "name": "gemm", "tid": 7, "ts": 2000, "dur": 800, "args": {"External id": 3}},
        memory(1660, 9_000_000, 100, device=1),
    ]
}


def numbers(table: str, name: str) -> list[str]:
    """Return the columns of the first line that starts with a name."""
    line = next(line for line in table.splitlines() if line.startswith(name))
    return line.removeprefix(name).split()


def test_own_times_calls_and_the_peak_are_as_in_the_trace() -> None:
    table = describe(TRACE, cuda=False)
    assert numbers(table, "forward, loss, norm of the gradients") == ["4.00", "40.0%"]
    assert numbers(table, "backward") == ["2.00", "20.0%"]
    assert numbers(table, "optimizer") == ["0.50", "5.0%"]
    assert numbers(table, "between operations (Python, batches)") == ["3.50", "35.0%"]
    assert numbers(table, "aten::addmm") == ["2.90", "29.0%", "1", "1"]  # without the `empty` in it
    assert numbers(table, "aten::mm") == ["1.00", "10.0%", "1"]  # its shapes are unknown, and so is its rate
    assert numbers(table, "AddmmBackward0") == ["1.00", "10.0%", "1"]
    held = table.split("at its peak: ")[1]
    assert held.startswith("7.0 MB")
    assert numbers(held, "aten::addmm") == ["5.00", "71.4%", "1"]  # what `empty` made is its caller's
    assert numbers(held, "aten::mm") == ["2.00", "28.6%", "1"]


def test_on_a_gpu_kernels_count() -> None:
    table = describe(TRACE, cuda=True)
    assert numbers(table, "forward, loss, norm of the gradients") == ["0.80", "8.0%"]
    assert numbers(table, "GPU without work") == ["9.20", "92.0%"]
    assert numbers(table, "aten::addmm") == ["0.80", "8.0%", "1", "4"]
    assert "at its peak: 9.0 MB" in table


@pytest.mark.slow
def test_two_processes_write_one_profile_and_the_profiler_keeps_quiet(recipe, tmp_path) -> None:
    loaded = recipe(training__max_steps=8)
    command = ["train", loaded.path, "--num-processes", "2", "--profile"]
    done = subprocess.run(
        [sys.executable, "-m", "peftcli", *command], capture_output=True, text=True, env=os.environ, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("profile of 3 steps") == 1
    assert not [line for line in done.stderr.splitlines() if "USDT" in line or "CPUAllocator" in line]
    assert measured_steps(loaded) == 3
