"""This project's side: `peft train` as a user runs it, in a process of its own. Prints one line of JSON.

python benchmarks/ours.py '{"task": "causal_lm", ...}' CHECKPOINT ROWS INITIAL
python benchmarks/ours.py RECIPE.json
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

from cells import ADALORA, CLASSES, LEARNING_RATE, LORA, PACK_LENGTH, VIRTUAL_TOKENS, Cell, parse


def method_block(cell: Cell) -> dict[str, Any]:
    """Return the recipe's `method`, without its initial values."""
    own: dict[str, dict[str, Any]] = {
        "lora": {**LORA, "target_modules": ["attn.q", "attn.v"]},
        "qlora": LORA,
        "adalora": {**ADALORA, "target_modules": ["attn.q", "attn.v"]},
        "prefix_tuning": {"num_virtual_tokens": VIRTUAL_TOKENS, "prefix_projection": False},
    }
    return {"name": cell.method, **own.get(cell.method, {})}


def recipe(cell: Cell, checkpoint: str, rows: str, initial: str) -> dict[str, Any]:
    """Return the whole recipe of a cell."""
    data: dict[str, Any] = {"path": rows, "format": "pretokenized", "val_set_size": 0, "max_length": PACK_LENGTH}
    model: dict[str, Any] = {"name_or_path": checkpoint, "dtype": cell.dtype}
    if cell.task == "sequence_classification":
        model["num_labels"] = CLASSES
    training: dict[str, Any] = {
        "max_steps": cell.steps, "learning_rate": LEARNING_RATE, "lr_scheduler_type": "constant", "logging_steps": 1,
        "per_device_train_batch_size": cell.packs if cell.packed else cell.batch_size, "save_strategy": "no",
        "bf16": "auto" if cell.dtype == "auto" else cell.dtype == "bfloat16",
        "gradient_checkpointing": cell.checkpointing, "torch_compile": cell.compiled,
    }  # fmt: skip
    if cell.same_order:
        training["train_sampling_strategy"] = "sequential"
    return {
        "model": model,
        "task": cell.task,
        "data": {**data, "max_rows": cell.steps * cell.batch_size, "packing": cell.packed},
        "method": {**method_block(cell), "init_from": initial},
        "training": training,
    }


def main() -> None:
    """Train, and print what the run directory says."""
    with tempfile.TemporaryDirectory() as scratch:
        if len(sys.argv) == 2:
            whole = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
        else:
            whole = recipe(parse(sys.argv[1]), *sys.argv[2:5])
        file = Path(scratch) / "recipe.yaml"  # JSON is YAML
        file.write_text(json.dumps({**whole, "output_dir": f"{scratch}/run"}), encoding="utf-8")
        from peftcli.cli.app import main as peft

        sys.argv = ["peft", "train", str(file), "--quiet"]
        try:
            peft()
        except SystemExit as stop:
            if stop.code:
                raise
        run = Path(scratch) / "run"
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        summary = json.loads((run / "summary.json").read_text())
    print("RESULT " + json.dumps(measured([line for line in lines if "loss" in line], summary)))


def measured(steps: list[dict[str, Any]], summary: dict[str, Any]) -> dict[str, Any]:
    """Return what a side prints, from the lines of the steps and the summary."""
    seen = [0, *(step["tokens"] for step in steps)]
    on_device = summary["device"].startswith("cuda")
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {
        "losses": [step["loss"] for step in steps],
        "norms": [step["grad_norm"] for step in steps],
        "step_ends": [step["time"] for step in steps],
        "step_tokens": [after - before for before, after in pairwise(seen)],
        "supervised_share": summary["supervised_tokens"] / summary["train_tokens"],
        "compute": "bfloat16" if summary["precision"].startswith("bf16") else "float32",
        "peak_rss_bytes": peak * 1024,
        "peak_device_bytes": summary["peak_memory_bytes"] if on_device else None,
    }


if __name__ == "__main__":
    main()
