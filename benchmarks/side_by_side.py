"""Measure this project against HF peft + Trainer: the same checkpoint, initial values, rows, order and optimizer.

    python benchmarks/side_by_side.py                      # every cell of this machine, about two hours on two cores
    python benchmarks/side_by_side.py --cells causal_lm/135m/lora --repeats 3
    python benchmarks/side_by_side.py --minutes 10         # what fits: on one card each cell has a limit of its own
    python benchmarks/side_by_side.py --cuda-cells --minutes 10 --list     # which these are; runs nothing
    python benchmarks/side_by_side.py --tiny               # runs every path in minutes, measures and writes nothing

Each side of each repeat is a process of its own; the sides alternate, so that a busy machine hits both. Each cell's
record goes to benchmarks/results.json as soon as it is there, and RESULTS.md is written from that file: cells measured
before on this machine with these versions stay, others say that they were not measured. How it is measured:

- tokens are non-padding input tokens; the steps after the first (compiled: after the first half) count;
- memory is the peak of the device, or of the whole process on a CPU, imports and loading included;
- the first step is over that many seconds after the command was started, with no rows in this project's cache;
- losses and gradient norms are compared at every step; a base with dropout is run once more without, for that alone;
- utilisation is 4N + attention on non-padding tokens over the best matrix product right before and after the runs:
  a virtual machine may be slow for the few seconds of one of them.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import report
from cells import CPU_CELLS, CUDA_CELLS, Cell, tiny
from common.process_tree import measured
from common.record import commit, processor
from initial import initial_values
from material import has_dropout, prepare, read_rows

HERE = Path(__file__).parent
IMPORTS = "import torch, peft; from transformers import Trainer"
LIBRARIES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes")


def run_side(
    script: str,
    *arguments: str | Path,
    cache: Path | None = None,
    python: str = sys.executable,
    limit: float = math.inf,
) -> dict[str, Any]:
    """Run one side once and return its measurements.

    Args:
        cache: where this project keeps prepared rows; None is a new folder.
        python: of the environment that has the side's packages.
        limit: seconds after which it is ended.

    Raises:
        RuntimeError: it failed or took too long; shows what it printed.
    """
    command = [python, str(HERE / script), *map(str, arguments)]
    with tempfile.TemporaryDirectory() as empty:
        environment = {"HF_HUB_OFFLINE": "1", "PEFTCLI_CACHE": str(cache or empty), "HF_DATASETS_CACHE": empty}
        started, log = time.time(), Path(empty) / "log"
        used = measured(command, {**os.environ, **environment}, Path.cwd(), log, max(1.0, limit))
        said = log.read_text(encoding="utf-8", errors="replace")
    for line in said.splitlines():
        if line.startswith("RESULT "):
            return {**json.loads(line.removeprefix("RESULT ")), "started": started}
    if used.late:
        raise RuntimeError(f"{script} was not done after {limit:.0f} s")
    raise RuntimeError(f"{script} failed with exit code {used.code}\n{said[-5000:]}")


def measure(cell: Cell, material: Path, data: Path, repeats: int, limit: float = math.inf) -> dict[str, Any]:
    """Run both sides alternately and return the record of one cell.

    Args:
        limit: seconds for all of it: a repeat is left out where it would end later.
    """
    end = time.monotonic() + limit
    checkpoint, rows = prepare(cell, material, data)
    initial = initial_values(cell, checkpoint, material)
    before = peaks(cell)
    ours, theirs = [], []
    for _ in range(repeats):
        began = time.monotonic()
        for script, runs in (("ours.py", ours), ("baseline.py", theirs)):
            left = end - time.monotonic()
            runs.append(run_side(script, cell.as_json(), checkpoint, rows, initial, limit=left))
        if 2 * time.monotonic() - began > end:
            break
    compared = None
    if has_dropout(checkpoint) and cell.same_order:
        plain = replace(cell, dropout=False)
        quiet, _ = prepare(plain, material, data)
        sides = ("ours.py", "baseline.py")
        compared = tuple(run_side(script, plain.as_json(), quiet, rows, initial) for script in sides)
    record = report.summarise(cell, ours, theirs, compared)
    best = {name: max(peak, before[name]) for name, peak in peaks(cell).items()}
    return record | utilisation(cell, record, checkpoint, read_rows(rows), best)


def peaks(cell: Cell) -> dict[str, float]:
    """Return the best FLOP/s of a matrix product, now, in the dtypes that the cell may compute in."""
    import torch
    from common.flops import matmul_peak

    device = "cuda" if torch.cuda.is_available() else "cpu"
    names = ("float32", "bfloat16") if cell.dtype == "auto" else (cell.dtype,)
    return {name: matmul_peak(getattr(torch, name), device) for name in names}


def utilisation(
    cell: Cell, record: dict[str, Any], checkpoint: Path, rows: list[dict[str, Any]], best: dict[str, float]
) -> dict[str, Any]:
    """Return model FLOPs utilisation of both sides against the peaks in their dtypes."""
    import torch
    from common.flops import step_flops
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    causal = cell.task == "causal_lm"
    kind = AutoModelForCausalLM if causal else AutoModelForSequenceClassification
    with torch.device("meta"):
        model = kind.from_config(AutoConfig.from_pretrained(checkpoint))
    each = step_flops(model, rows, causal) / sum(len(row["input_ids"]) for row in rows)
    return {
        "utilisation": each * record["ours"] / best[record["compute"]],
        "utilisation_theirs": each * record["theirs"] / best[cell.baseline_dtype],
        "peak_flops": best[record["compute"]],
        "device": "cuda" if torch.cuda.is_available() else "cpu",
    }


def import_seconds(repeats: int) -> float:
    """Return how long a fresh process takes to import what the baseline needs, and nothing else."""
    found = []
    for _ in range(repeats):
        started = time.time()
        subprocess.run([sys.executable, "-c", IMPORTS], check=True, capture_output=True)
        found.append(time.time() - started)
    return statistics.median(found)


def machine() -> str:
    """Return the GPU's name, or the CPU's and its cores."""
    import torch

    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return processor()


def versions() -> str:
    """Return the libraries of a measurement with their versions."""
    return ", ".join(f"{name} {version(name)}" for name in LIBRARIES)


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="*", help="names, or their beginnings; all of this machine's by default")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, help="steps of a run, instead of each cell's own")
    parser.add_argument("--minutes", type=float, default=math.inf, help="no cell is begun that may end later")
    parser.add_argument("--list", action="store_true", help="only name the cells, with their limits in --minutes")
    parser.add_argument("--page", action="store_true", help="only write RESULTS.md from results.json")
    parser.add_argument("--tiny", action="store_true", help="every cell on a model of a few thousand weights")
    parser.add_argument("--cuda-cells", action="store_true", help="the CUDA cells, GPU or not; for --tiny")
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared/data/gsm8k_train_2000.jsonl")
    parser.add_argument("--material", type=Path, default=Path.home() / ".cache/peftcli-benchmarks")
    parser.add_argument("--output", type=Path, default=HERE, help="where results.json and RESULTS.md are")
    return parser.parse_args()


def chosen(given: argparse.Namespace) -> list[Cell]:
    """Return the cells that the command line asks for, as they are to be run."""
    import torch

    cells = CUDA_CELLS if torch.cuda.is_available() or given.cuda_cells else CPU_CELLS
    if given.cells:
        cells = [cell for cell in cells if any(cell.name.startswith(name) for name in given.cells)]
    if not cells:
        raise SystemExit(f"no cell is called {', '.join(given.cells)}")
    cells = [tiny(cell) for cell in cells] if given.tiny else cells
    return [replace(cell, steps=given.steps or cell.steps) for cell in cells]


def write(folder: Path, stored: dict[str, Any]) -> None:
    """Write both files."""
    (folder / "results.json").write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    text = folder / "RESULTS.md"
    before = text.read_text(encoding="utf-8") if text.exists() else "# Results\n\n"
    text.write_text(report.page(stored, before), encoding="utf-8")


def listing(cells: list[Cell], seconds: float) -> str:
    """Return the cells in the order in which they are measured: how long each may take, and which fit for certain."""
    lines, left = [], seconds
    for cell in cells:
        limit = cell.limit if left < math.inf else math.inf
        fits = limit <= left
        left -= limit if fits and limit < math.inf else 0.0
        limits = "" if math.isinf(limit) else f"{limit:4.0f} s at most  "
        lines.append(f"{limits}{cell.name}{'' if fits else '  (only if others end sooner)'}")
    return "\n".join(lines)


def main() -> None:
    """Measure the cells one after the other; what is done is kept when the next one fails."""
    given = options()
    if given.page:
        write(given.output, report.load(given.output / "results.json"))
        return
    cells, end = chosen(given), time.monotonic() + 60 * given.minutes
    if given.list:
        print(listing(cells, 60 * given.minutes))
        return
    given.material.mkdir(parents=True, exist_ok=True)
    shared = {
        "date": str(datetime.date.today()),
        "commit": commit(),
        "imports": import_seconds(given.repeats if math.isinf(end) else 1),
    }
    failed = 0
    for cell in cells:
        limit = math.inf if math.isinf(end) else cell.limit
        if time.monotonic() + limit > end and not math.isinf(end):
            print(f"{cell.name} is not measured: it may take {limit:.0f} s, and the time is up", file=sys.stderr)
            continue
        try:
            record = measure(cell, given.material, given.data, given.repeats, limit) | shared
        except RuntimeError as error:
            print(error, file=sys.stderr)
            record = {"cell": cell.name, "failed": str(error).splitlines()[0], **shared}
            failed += 1
        print(report.line(cell.name, record), flush=True)
        if not given.tiny:
            stored = report.load(given.output / "results.json")
            write(given.output, report.merge(stored, machine(), versions(), record))
    if failed:
        raise SystemExit(f"{failed} of {len(cells)} cells failed")


if __name__ == "__main__":
    main()
