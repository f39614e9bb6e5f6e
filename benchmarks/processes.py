"""Measure several processes on this machine: speed, memory of a process, and bytes that are sent, plain and sharded.

    python benchmarks/processes.py                     # 1 and 2 processes of one thread, three repeats, alternating
    python benchmarks/processes.py --processes 1 2 4 --shape 30m
    python benchmarks/processes.py --tiny --output /tmp/processes.json       # shows that it runs, measures nothing

LoRA on a random model, the same rows in every step however many processes share them. Each run has a network namespace
of its own where the system allows that, so that the loopback's counters give the bytes that the processes sent. Beside
the runs stands what the machine can do at most: as many independent processes, each with its share of the rows and no
other to talk to (`--processes N` cannot be faster than that).
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import ours
from cells import Cell
from common.record import commit
from initial import initial_values
from material import SHAPES, prepare
from side_by_side import HERE, machine

ALONE = "alone"
"""The strategy of independent processes: what the machine can do at most."""


def measure(shape: str, dtype: str, sizes: list[int], repeats: int, steps: int, material: Path, data: Path) -> Any:
    """Return the runs, one record each; the kinds of run alternate, so that the machine's mood affects all alike."""
    cell = Cell(shape=shape, dtype=dtype, steps=steps)
    checkpoint, rows = prepare(cell, material, data)
    initial = initial_values(cell, checkpoint, material)
    whole = ours.recipe(cell, str(checkpoint), str(rows), str(initial))
    largest = max(sizes)
    kinds = [(1, "ddp"), *((size, kind) for size in sizes if size > 1 for kind in ("ddp", "fsdp")), (largest, ALONE)]
    found = []
    for _ in range(repeats):
        for size, kind in kinds:
            one = alone(whole, size) if kind == ALONE else together(whole, size, kind)
            found.append({"processes": size, "strategy": kind, **one})
            print(json.dumps(found[-1]), flush=True)
    return found


def together(whole: dict[str, Any], size: int, strategy: str) -> dict[str, Any]:
    """Train once on `size` processes; return speed, memory and traffic."""
    rows = whole["training"]["per_device_train_batch_size"] // size
    training = {**whole["training"], "per_device_train_batch_size": rows}
    recipe = {**whole, "training": training, "distributed": {"strategy": strategy if size > 1 else "auto"}}
    with tempfile.TemporaryDirectory() as scratch:
        (found,) = run([(Path(scratch), recipe)], size)
    return found


def alone(whole: dict[str, Any], size: int) -> dict[str, Any]:
    """Train `size` times at once, each on its share of the rows; return the sum of the speeds."""
    rows = whole["training"]["per_device_train_batch_size"] // size
    recipe = {**whole, "training": {**whole["training"], "per_device_train_batch_size": rows}}
    with tempfile.TemporaryDirectory() as scratch:
        found = run([(Path(scratch) / str(number), recipe) for number in range(size)], 1)
    return {
        "tokens_per_second": sum(one["tokens_per_second"] for one in found),
        "peak_rss_bytes": max(one["peak_rss_bytes"] for one in found),
        "last_loss": None, "base_bytes_per_process": None, "bytes_sent_a_step": None,
    }  # fmt: skip


def run(jobs: list[tuple[Path, dict[str, Any]]], size: int) -> list[dict[str, Any]]:
    """Run jobs at the same time, each in a process of its own; return what each printed."""
    for scratch, recipe in jobs:
        scratch.mkdir(exist_ok=True)
        whole = {**recipe, "output_dir": str(scratch / "run")}
        (scratch / "recipe.yaml").write_text(json.dumps(whole), encoding="utf-8")
    with ThreadPoolExecutor(len(jobs)) as pool:
        return list(pool.map(lambda job: _start(job[0], size), jobs))


def _start(scratch: Path, size: int) -> dict[str, Any]:
    """Start this file again as the parent of one run, in a network namespace of its own if that can be had."""
    command = [sys.executable, str(HERE / "processes.py"), "--run", str(scratch), str(size)]
    if own_network():
        command = ["unshare", "-rn", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *command]
    environment = {"HF_HUB_OFFLINE": "1", "PEFTCLI_CACHE": str(scratch / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)
    if done.returncode:
        raise RuntimeError(f"a run on {size} processes failed\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def own_network() -> bool:
    """Whether this system lets a user make a network namespace."""
    if not (shutil.which("unshare") and shutil.which("ip")):
        return False
    tried = ["unshare", "-rn", "ip", "link", "set", "lo", "up"]
    return subprocess.run(tried, capture_output=True, check=False).returncode == 0


def one_run(scratch: Path, size: int) -> None:
    """Train as a user does, with the loopback's counters read after each step; print the measurements."""
    command = [sys.executable, "-m", "peftcli", "train", str(scratch / "recipe.yaml"), "--quiet"]
    command += ["--num-processes", str(size)] if size > 1 else []
    run = scratch / "run"
    lines: list[dict[str, Any]] = []
    sent: list[int] = []
    process = subprocess.Popen(command, stdout=sys.stderr)
    while process.poll() is None:
        time.sleep(0.02)
        lines = _steps(run / "metrics.jsonl")
        sent += [_sent()] * (len(lines) - len(sent))
    lines = _steps(run / "metrics.jsonl")
    if process.returncode:
        sys.exit(process.returncode)
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    seconds = lines[-1]["time"] - lines[0]["time"]
    growth = [after - before for before, after in pairwise(sent)]
    print(json.dumps({
        "tokens_per_second": (lines[-1]["tokens"] - lines[0]["tokens"]) / seconds,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
        "last_loss": lines[-1]["loss"],
        "base_bytes_per_process": summary.get("base_bytes_per_process"),
        "bytes_sent_a_step": statistics.median(growth) if growth and own_network() else None,
    }))  # fmt: skip


def _steps(file: Path) -> list[dict[str, Any]]:
    """Return the lines of the steps that were taken so far."""
    if not file.exists():
        return []
    whole = [line for line in file.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
    return [line for line in map(json.loads, whole) if "loss" in line]


def _sent() -> int:
    """Return the bytes that the loopback has sent."""
    found = re.search(r"^\s*lo:(.*)$", Path("/proc/net/dev").read_text(encoding="utf-8"), re.MULTILINE)
    return int(found.group(1).split()[8]) if found else 0


def table(record: dict[str, Any]) -> str:
    """Return the medians as a Markdown table."""
    runs = record["runs"]
    kinds = list(dict.fromkeys((one["processes"], one["strategy"]) for one in runs))

    def median(kind: tuple[int, str], key: str) -> float | None:
        values = [one[key] for one in runs if (one["processes"], one["strategy"]) == kind and one[key] is not None]
        return statistics.median(values) if values else None

    first = median((1, "ddp"), "tokens_per_second")
    assert first
    columns = "tokens/s | beside one | peak of a process, GB | base of a process, MB | sent a step, MB"
    head = f"| processes | strategy | {columns} |"
    lines = [head, "|---|---|---|---|---|---|---|"]
    for size, strategy in kinds:
        kind = (size, strategy)
        speed = median(kind, "tokens_per_second") or 0.0
        cells = [
            median(kind, "peak_rss_bytes"),
            median(kind, "base_bytes_per_process"),
            median(kind, "bytes_sent_a_step"),
        ]
        shown = [
            f"{cells[0] / 1e9:.2f}" if cells[0] else "",
            *(f"{c / 1e6:,.1f}" if c is not None else "" for c in cells[1:]),
        ]
        name = "independent" if strategy == ALONE else strategy if size > 1 else "one process"
        lines.append(f"| {size} | {name} | {speed:,.0f} | {speed / first:.2f} | {' | '.join(shown)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, keep the record, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--shape", default="30m", choices=[name for name in SHAPES if "hidden_size" in SHAPES[name]])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="one repeat of a few steps on a tiny model")
    parser.add_argument("--table", action="store_true", help="measure nothing, print the table of what was measured")
    parser.add_argument("--run", nargs=2, metavar=("SCRATCH", "SIZE"), help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared/data/gsm8k_train_2000.jsonl")
    parser.add_argument("--material", type=Path, default=Path.home() / ".cache/peftcli-benchmarks")
    parser.add_argument("--output", type=Path, default=HERE / "processes.json")
    given = parser.parse_args()
    if given.run:
        one_run(Path(given.run[0]), int(given.run[1]))
        return
    if given.tiny:
        given.shape, given.steps, given.repeats = "tiny", 3, 1
    if not given.table:
        given.material.mkdir(parents=True, exist_ok=True)
        runs = measure(
            given.shape, given.dtype, given.processes, given.repeats, given.steps, given.material, given.data
        )
        record = {
            "machine": machine(), "date": datetime.date.today().isoformat(), "commit": commit(),
            "shape": given.shape, "dtype": given.dtype, "method": "lora", "rows_a_step": Cell().batch_size,
            "runs": runs,
        }  # fmt: skip
        given.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(table(json.loads(given.output.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
