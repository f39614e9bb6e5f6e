"""A run directory made by hand: every file that a report reads."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from peftcli.data.store.data_report import Counts, DataReport
from peftcli.record.run_summary import Summary

RECIPE = """\
model: {name_or_path: tiny-model}
task: causal_lm
data: {path: rows.jsonl, max_length: 64}
method: {name: lora, r: 8, lora_alpha: 16}
training: {learning_rate: 0.002, num_train_epochs: 1}
seed: 0
"""


def write_run(run: Path, *, steps: int = 60) -> Path:
    """Write a finished run with curves, samples, notes and skipped rows; return its directory."""
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    lines: list[dict[str, object]] = []
    for step in range(steps + 1):
        if step:
            lines.append({"step": step, "loss": 2 - 1.2 * step / steps, "learning_rate": 2e-3, "grad_norm": 0.4,
                          "tokens_per_second": 900.0, "time": 1.79e9 + step})  # fmt: skip
        if step % 10 == 0:
            lines.append({"step": step, "eval_loss": 2 - step / steps, "eval_exact_match": 0.25 + step / steps / 2,
                          "eval_rows": 40, "eval_runtime": 0.2})  # fmt: skip
    samples = [
        {"step": step, "row": row, "prompt": "<q>", "prediction": text, "reference": "ref"}
        for step, text in ((0, "nothing"), (steps, "a good answer"))
        for row in range(2)
    ]
    skipped = [{"source": "rows.jsonl", "row": 7, "message": "bad row", "excerpt": "{"}]
    for name, rows in (("metrics", lines), ("samples", samples), ("skipped_rows", skipped)):
        (run / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    report = DataReport(
        counts=Counts(50, 49, 3, 0, 0, 1), sets={"train": Counts(50, 49, 3, 0, 0, 1)}, format="chat",
        evidence=["rows.jsonl: messages -> chat"], train_rows=40, validation_rows={"validation": 9}, tokens=900,
        longest=60, unused={"column id": 50},
    )  # fmt: skip
    summary = Summary(
        status="finished", method="lora", task="causal_lm", output_dir=str(run), trainable=148_994, saved=147_456,
        total=22_862_980, steps=steps, total_steps=steps, epochs=1.0, train_loss=1.4,
        eval={"eval_loss": 1.0, "eval_exact_match": 0.75, "eval_rows": 40},
        eval_before={"eval_loss": 2.0, "eval_exact_match": 0.25}, best_step=steps, train_runtime=72.5,
        train_tokens=54_000, supervised_tokens=20_000, tokens_per_second=900.0, peak_memory_bytes=752_000_000,
        device="cpu", precision="fp32", versions={"torch": "2.13.0"}, notes=["a note"], data=report.for_summary(),
    )  # fmt: skip
    (run / "summary.json").write_text(json.dumps(asdict(summary)), encoding="utf-8")
    return run
