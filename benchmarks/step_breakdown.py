"""Where the time of a training step goes, pass by pass, and the ceiling that matrix products set.

    python benchmarks/step_breakdown.py                     # LoRA on the 135M shape in float32, on an idle machine
    python benchmarks/step_breakdown.py --dtype bfloat16
    python benchmarks/step_breakdown.py --shape tiny --output /tmp/breakdown     # shows that it runs

`peft train --profile` records three steps with the shapes of every operation. A pass is told by the operation and by
the width of its first argument: of a Llama-like shape these differ. An operation's time leaves out those that it calls;
the profiler itself adds some microseconds to each, so the steps are a little slower than without. The peak is that of
the best square product, measured before and after the run.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import ours
from cells import LORA, Cell
from common.record import between, commit
from initial import initial_values
from material import SHAPES, prepare
from side_by_side import HERE, machine, versions

from peftcli.training.watch.profile_table import Operation, operations_of, steps_of

BEGIN = "<!-- breakdown: written by step_breakdown.py from breakdown.json -->"
END = "<!-- end of breakdown -->"
PRODUCTS = ("products of the base", "products of the head", "products of LoRA")
ELEMENTWISE = {
    f"aten::{name}"
    for name in (
        "add", "add_", "cat", "copy_", "div", "fill_", "mean", "mul", "mul_", "neg", "pow", "rsqrt", "silu",
        "silu_backward", "sub", "sum", "zero_",
    )
}  # fmt: skip
"""Operations that go over their arguments' memory; others of the same width only arrange them."""
DISPATCH = "views, memory, autograd's own steps"
BETWEEN = "between operations (Python, batches)"


def pass_of(operation: Operation, shape: dict[str, Any]) -> str:
    """Return which pass of a step an operation belongs to."""
    callers = _callers(operation)
    width, inner = shape["hidden_size"], shape["intermediate_size"]
    head_width = width // shape["num_attention_heads"]
    first = operation.shapes[0] if operation.shapes else []
    last = first[-1] if first else 0
    touches = operation.name in ELEMENTWISE
    own = any("HeadCrossEntropy" in name for name in callers)
    if operation.work:
        rank = any(LORA["r"] in sizes for sizes in operation.shapes)
        return PRODUCTS[1] if own else PRODUCTS[2] if rank else PRODUCTS[0]
    rules = {
        "softmax and loss": own,
        "attention": any("scaled_dot_product" in name for name in callers),
        "LoRA beside its products": any("LowRankAdd" in name for name in callers),
        "optimizer": operation.phase == "optimizer",
        "SwiGLU": touches and last == inner,
        "rotary embedding, and heads put together": touches
        and len(first) == 4
        and last in (head_width, head_width // 2),
        "residuals, and sums of gradients": last == width and operation.name in ("aten::add", "aten::add_"),
        "norms": touches and (last == width or (last == 1 and len(first) == 3)),
    }
    return next((name for name, fits in rules.items() if fits), DISPATCH)


def _callers(operation: Operation) -> list[str]:
    found, caller = [operation.name], operation.parent
    while caller is not None:
        found.append(caller.name)
        caller = caller.parent
    return found


def passes(trace: dict[str, Any], shape: dict[str, Any]) -> tuple[dict[str, dict[str, float]], float, int]:
    """Return each pass's milliseconds and GFLOP of a step, a step's milliseconds, and how many steps were recorded."""
    events = trace["traceEvents"]
    steps = steps_of(events)
    wall = sum(step["dur"] for step in steps)
    found: dict[str, dict[str, float]] = defaultdict(lambda: {"ms": 0.0, "gflop": 0.0})
    for thread in operations_of(events).values():
        for operation in thread:
            one = found[pass_of(operation, shape)]
            one["ms"] += operation.own / 1e3 / len(steps)
            one["gflop"] += operation.work / 1e9 / len(steps)
    total = wall / 1e3 / len(steps)
    found[BETWEEN] = {"ms": max(total - sum(one["ms"] for one in found.values()), 0.0), "gflop": 0.0}
    return dict(sorted(found.items(), key=lambda item: -item[1]["ms"])), total, len(steps)


def measure(shape: str, dtype: str, material: Path, data: Path) -> dict[str, Any]:
    """Train with the profiler, and return the record."""
    import torch
    from common.flops import matmul_peak

    cell = Cell(shape=shape, dtype=dtype)
    checkpoint, rows = prepare(cell, material, data)
    whole = ours.recipe(cell, str(checkpoint), str(rows), str(initial_values(cell, checkpoint, material)))
    peaks = [matmul_peak(getattr(torch, dtype), "cpu")]
    with tempfile.TemporaryDirectory() as scratch:
        recipe, run = Path(scratch) / "recipe.yaml", Path(scratch) / "run"
        recipe.write_text(json.dumps({**whole, "output_dir": str(run)}), encoding="utf-8")
        command = [sys.executable, "-m", "peftcli", "train", str(recipe), "--profile", "--quiet"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        trace = json.loads((run / "profile/trace.json").read_text(encoding="utf-8"))
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    peaks.append(matmul_peak(getattr(torch, dtype), "cpu"))
    found, total, steps = passes(trace, SHAPES[shape])
    tokens = [line["tokens"] for line in lines if "loss" in line]
    return {
        "cell": cell.name, "machine": machine(), "versions": versions(), "commit": commit(),
        "date": str(datetime.date.today()), "passes": found, "ms": total, "steps": steps,
        "tokens": (tokens[-1] - tokens[-1 - steps]) / steps, "peak": max(peaks) / 1e9,
    }  # fmt: skip


def table(record: dict[str, Any]) -> list[str]:
    """Return the passes as a Markdown table, and the ceilings in words."""
    peak, total, tokens = record["peak"], record["ms"], record["tokens"]
    lines = ["| pass | ms a step | share | GFLOP/s | of the peak |", "|---|---|---|---|---|"]
    for name, one in record["passes"].items():
        rate = one["gflop"] / one["ms"] * 1e3 if one["gflop"] else None
        of_peak = "| | |" if rate is None else f"| {rate:,.0f} | {rate / peak:.0%} |"
        lines.append(f"| {name} | {one['ms']:,.0f} | {one['ms'] / total:.1%} {of_peak}")
    work = sum(one["gflop"] for one in record["passes"].values())
    products = sum(one["ms"] for one in record["passes"].values() if one["gflop"])
    ideal = work / peak * 1e3
    reached = [tokens / time * 1e3 for time in (total - products + ideal, products, ideal)]
    return [
        f"{record['cell']}, {record['machine']}; {record['versions']}; {record['date']}: {tokens:,.0f} tokens and "
        f"{total:,.0f} ms a step with the profiler on, {tokens / total * 1e3:,.0f} tokens/s; best product "
        f"{peak:,.0f} GFLOP/s.",
        "",
        *lines,
        "",
        f"All matrix products are {work:,.0f} GFLOP a step, {work / total * 1e3 / peak:.0%} of the peak over the whole "
        f"step. With every product at the peak and all else as it is, a step would reach {reached[0]:,.0f} tokens/s; "
        f"with the products as they are and all else free, {reached[1]:,.0f}; with both, {reached[2]:,.0f}.",
    ]


def page(records: list[dict[str, Any]], text: str) -> str:
    """Return RESULTS.md with the part between the marks written anew."""
    return between(text, BEGIN, END, "\n\n".join("\n".join(table(record)) for record in records))


def main() -> None:
    """Measure, keep the record, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    llamas = [name for name in SHAPES if "intermediate_size" in SHAPES[name] and "model_type" not in SHAPES[name]]
    parser.add_argument("--shape", default="135m", choices=llamas)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--page", action="store_true", help="only write RESULTS.md from breakdown.json")
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared/data/gsm8k_train_2000.jsonl")
    parser.add_argument("--material", type=Path, default=Path.home() / ".cache/peftcli-benchmarks")
    parser.add_argument("--output", type=Path, default=HERE, help="where breakdown.json and RESULTS.md are")
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    file, results = given.output / "breakdown.json", given.output / "RESULTS.md"
    records = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    if not given.page:
        given.material.mkdir(parents=True, exist_ok=True)
        new = measure(given.shape, given.dtype, given.material, given.data)
        same = ("cell", "machine")
        records = [new, *(one for one in records if any(one[key] != new[key] for key in same))]
        file.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    text = results.read_text(encoding="utf-8") if results.exists() else ""
    results.write_text(page(records, text), encoding="utf-8")
    print("\n".join(table(records[0])))


if __name__ == "__main__":
    main()
