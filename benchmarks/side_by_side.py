"""Measure this project against HF peft + Trainer: the same checkpoint, rows, order, method and optimizer.

    python benchmarks/side_by_side.py                      # the CPU cells, about an hour on two cores
    python benchmarks/side_by_side.py --cells causal_lm/135m/lora --repeats 3 --steps 6

Each side of each repeat is a process of its own; the sides alternate, so that a busy machine hits both. The results go
to benchmarks/RESULTS.md, with machine, versions and date. A cell that was not measured says so.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from material import Cell, causal_checkpoint, causal_rows, encoder_checkpoint, encoder_rows, read_rows  # noqa: E402

CPU_CELLS = [
    Cell(),
    Cell(tuned=True),
    Cell(dtype="bfloat16"),
    Cell(checkpointing=True),
    Cell(method="adalora"),
    Cell(method="prefix_tuning"),
    Cell(method="qlora"),
    Cell(task="sequence_classification", shape="minilm", steps=20, batch_size=16),
    Cell(task="sequence_classification", shape="minilm", steps=20, batch_size=16, method="bitfit"),
    Cell(task="sequence_classification", shape="minilm", steps=20, batch_size=16, method="adalora"),
]
CUDA_CELLS = [
    Cell(shape=shape, method=method, dtype="bfloat16", steps=20)
    for shape in ("1b", "8b")
    for method in ("lora", "qlora")
]


def run_side(script: str, cell: Cell, checkpoint: Path, rows: Path) -> dict[str, Any]:
    """Run one side once and return its measurements; a failure shows what it printed."""
    command = [sys.executable, str(HERE / script), cell.as_json(), str(checkpoint), str(rows)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            measured: dict[str, Any] = json.loads(line.removeprefix("RESULT "))
            return measured
    raise RuntimeError(
        f"{script} {cell.name} failed ({done.returncode}):\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    )


def measure(cell: Cell, material: Path, data: Path, repeats: int) -> dict[str, Any]:
    """Run both sides alternately and return medians, spreads and ratios of one cell."""
    checkpoint, rows = prepare(cell, material, data)
    sides: dict[str, list[dict[str, Any]]] = {"ours.py": [], "baseline.py": []}
    for _ in range(repeats):
        for script, results in sides.items():
            results.append(run_side(script, cell, checkpoint, rows))
    used = read_rows(rows)[: cell.steps * cell.batch_size]
    return summarise(cell, sides["ours.py"], sides["baseline.py"], used, checkpoint)


def prepare(cell: Cell, material: Path, data: Path) -> tuple[Path, Path]:
    count = cell.steps * cell.batch_size
    if cell.task == "causal_lm":
        checkpoint = causal_checkpoint(cell.shape, material)
        return checkpoint, causal_rows(data, checkpoint, material / f"rows-{cell.shape}-{count}.jsonl", count)
    checkpoint = encoder_checkpoint()
    return checkpoint, encoder_rows(checkpoint, material / f"rows-encoder-{count}.jsonl", count)


def tokens_per_second(results: list[dict[str, Any]], per_step: list[int]) -> tuple[float, float]:
    """Return the median over repeats, and the relative spread; the first step, which warms up, is left out."""
    rates = [sum(per_step[1:]) / sum(result["step_seconds"]) for result in results]
    middle = statistics.median(rates)
    return middle, (max(rates) - min(rates)) / middle


def summarise(
    cell: Cell, ours: list[dict[str, Any]], theirs: list[dict[str, Any]], rows: list[dict[str, Any]], checkpoint: Path
) -> dict[str, Any]:
    """Turn the runs of both sides into one row of the table."""
    size = cell.batch_size
    batches = [rows[start : start + size] for start in range(0, len(rows), size)]
    tokens = [sum(len(row["input_ids"]) for row in batch) for batch in batches]
    supervised = sum(sum(t != -100 for t in r["labels"]) if isinstance(r["labels"], list) else 1 for r in rows)
    rate, spread = tokens_per_second(ours, tokens)
    other, other_spread = tokens_per_second(theirs, tokens)
    memory = [statistics.median(r["peak_device_bytes"] or r["peak_rss_bytes"] for r in side) for side in (ours, theirs)]
    starts = [statistics.median(r["first_step_seconds"] for r in side) for side in (ours, theirs)]
    used, peak = utilisation(cell, rows, rate / sum(tokens), checkpoint)
    return {
        "cell": cell.name, "ours": rate, "theirs": other, "ratio": rate / other, "spread": max(spread, other_spread),
        "supervised": rate * supervised / sum(tokens), "memory_ours": memory[0], "memory_theirs": memory[1],
        "memory_ratio": memory[0] / memory[1], "loss_ours": ours[0]["losses"], "loss_theirs": theirs[0]["losses"],
        "first_step_ours": starts[0], "first_step_theirs": starts[1], "utilisation": used, "peak": peak,
    }  # fmt: skip


def utilisation(
    cell: Cell, rows: list[dict[str, Any]], runs_per_second: float, checkpoint: Path
) -> tuple[float, float]:
    """Return model FLOPs utilisation of all rows' work, and the peak measured now."""
    import torch
    from flops import matmul_peak, step_flops
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    causal = cell.task == "causal_lm"
    kind = AutoModelForCausalLM if causal else AutoModelForSequenceClassification
    with torch.device("meta"):
        model = kind.from_config(AutoConfig.from_pretrained(checkpoint))
    peak = matmul_peak(getattr(torch, cell.dtype), "cuda" if torch.cuda.is_available() else "cpu")
    return step_flops(model, rows, causal) * runs_per_second / peak, peak


def table(results: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| cell | ours tok/s | HF peft tok/s | ratio | spread | supervised tok/s | memory ours / HF | ratio "
        "| first step ours / HF (s) | MFU | loss after the same tokens, ours / HF |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        if "failed" in r:
            lines.append(f"| {r['cell']} | not measured: {r['failed']} | | | | | | | | | |")
            continue
        lines.append(
            f"| {r['cell']} | {r['ours']:.0f} | {r['theirs']:.0f} | **{r['ratio']:.2f}** "
            f"| {r['spread']:.0%} | {r['supervised']:.0f} "
            f"| {r['memory_ours'] / 2**30:.2f} / {r['memory_theirs'] / 2**30:.2f} GiB | **{r['memory_ratio']:.2f}** "
            f"| {r['first_step_ours']:.1f} / {r['first_step_theirs']:.1f} | {r['utilisation']:.0%} "
            f"| {r['loss_ours'][-1]:.4f} / {r['loss_theirs'][-1]:.4f} |"
        )
    return lines


def machine() -> str:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text().splitlines() if cpus.exists() else []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    model = next(named, platform.processor())
    return f"{model}, {os.cpu_count()} cores"


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="*", help="names, or their beginnings; all by default")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, help="steps of a run, instead of each cell's own")
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared/data/gsm8k_train_2000.jsonl")
    parser.add_argument("--material", type=Path, default=Path.home() / ".cache/peftcli-benchmarks")
    parser.add_argument("--output", type=Path, default=HERE / "RESULTS.md")
    options = parser.parse_args()
    options.material.mkdir(parents=True, exist_ok=True)
    cells = CUDA_CELLS if torch.cuda.is_available() else CPU_CELLS
    if options.cells:
        cells = [cell for cell in cells if any(cell.name.startswith(name) for name in options.cells)]
    results: list[dict[str, Any]] = []
    for cell in cells:
        if options.steps:
            cell = Cell(**{**json.loads(cell.as_json()), "steps": options.steps})
        try:
            results.append(measure(cell, options.material, options.data, options.repeats))
        except RuntimeError as error:
            print(error, file=sys.stderr)
            results.append({"cell": cell.name, "failed": str(error).splitlines()[0]})
        print("\n".join(table(results[-1:])[2:]), flush=True)
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft", "accelerate"))
    stamp = f"{machine()}; {versions}; {datetime.date.today()}; {options.repeats} repeats, alternating"
    section = "\n".join([f"## {stamp}", "", *table(results), ""])
    with options.output.open("a", encoding="utf-8") as out:
        out.write("\n" + section)
    (options.material / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
