"""This project's side: `peft train` as a user runs it, in a process of its own. Prints one JSON line.

python benchmarks/ours.py '{"task": "causal_lm", ...}' CHECKPOINT ROWS
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

STARTED = time.time()  # as in metrics.jsonl

import yaml  # noqa: E402  the start is measured

sys.path.insert(0, str(Path(__file__).parent))
from material import LEARNING_RATE, LORA, Cell  # noqa: E402


def method_block(cell: Cell) -> dict[str, Any]:
    if cell.method == "lora":
        return {"name": "lora", **LORA, "target_modules": ["attn.q", "attn.v"]}
    if cell.method == "qlora":
        return {"name": "qlora", **LORA}
    if cell.method == "adalora":
        return {
            "name": "adalora",
            "init_r": 12,
            "target_r": 8,
            "lora_alpha": 16,
            "target_modules": ["attn.q", "attn.v"],
        }
    if cell.method == "prefix_tuning":
        return {"name": "prefix_tuning", "num_virtual_tokens": 20}
    return {"name": cell.method}


def recipe(cell: Cell, checkpoint: str, rows: str, output: str) -> dict[str, Any]:
    block: dict[str, Any] = {
        "model": {"name_or_path": checkpoint, "dtype": cell.dtype},
        "task": cell.task,
        "data": {
            "path": rows,
            "format": "pretokenized",
            "val_set_size": 0,
            "max_length": 2048,
            "max_rows": cell.steps * cell.batch_size,
        },
        "method": method_block(cell),
        "training": {
            "max_steps": cell.steps, "per_device_train_batch_size": cell.batch_size, "learning_rate": LEARNING_RATE,
            "lr_scheduler_type": "constant", "logging_steps": 1, "save_strategy": "no",
            "bf16": cell.dtype == "bfloat16", "gradient_checkpointing": cell.checkpointing,
            "train_sampling_strategy": "group_by_length" if cell.tuned else "sequential",
        },
        "output_dir": output,
    }  # fmt: skip
    if cell.task == "sequence_classification":
        block["model"]["num_labels"] = 5
    return block


def main() -> None:
    cell, checkpoint, rows = Cell(**json.loads(sys.argv[1])), sys.argv[2], sys.argv[3]
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "recipe.yaml"
        file.write_text(yaml.safe_dump(recipe(cell, checkpoint, rows, f"{scratch}/run")), encoding="utf-8")
        from peftcli.cli.app import main as peft

        sys.argv = ["peft", "train", str(file), "--quiet"]
        try:
            peft()
        except SystemExit as stop:
            if stop.code:
                raise
        lines = [json.loads(line) for line in (Path(scratch) / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    times = [line["time"] for line in steps]
    peak_device = None
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
        peak_device = sys.modules["torch"].cuda.max_memory_allocated()
    print(
        "RESULT "
        + json.dumps(
            {
                "losses": [line["loss"] for line in steps],
                "step_seconds": [after - before for before, after in pairwise(times)],
                "first_step_seconds": times[0] - STARTED,
                "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                "peak_device_bytes": peak_device,
            }
        )
    )


if __name__ == "__main__":
    main()
