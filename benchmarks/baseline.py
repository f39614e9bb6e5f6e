"""The other side: HF peft + transformers' Trainer, as its documentation shows it. Prints one JSON line.

python benchmarks/baseline.py '{"task": "causal_lm", ...}' CHECKPOINT ROWS
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

STARTED = time.perf_counter()

import peft  # noqa: E402
import torch  # noqa: E402  the start is measured
from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

sys.path.insert(0, str(Path(__file__).parent))
from material import LEARNING_RATE, LORA, Cell, read_rows  # noqa: E402


def adapter_config(cell: Cell) -> Any:
    task = {"causal_lm": "CAUSAL_LM", "sequence_classification": "SEQ_CLS"}[cell.task]
    targets = ["q_proj", "v_proj"] if cell.task == "causal_lm" else ["query", "value"]
    if cell.method == "prefix_tuning":
        return peft.PrefixTuningConfig(task_type=task, num_virtual_tokens=20)
    if cell.method == "adalora":
        return peft.AdaLoraConfig(
            task_type=task, init_r=12, target_r=8, lora_alpha=16, target_modules=targets, total_step=10_000
        )
    if cell.method == "qlora":
        return peft.LoraConfig(task_type=task, target_modules="all-linear", **LORA)
    if cell.method == "lora":
        return peft.LoraConfig(task_type=task, target_modules=targets, **LORA)
    raise SystemExit(f"HF peft has no {cell.method}")


class Collator:
    """Pad to the longest row, on the right, labels with -100."""

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        longest = max(len(row["input_ids"]) for row in rows)
        batch: dict[str, Any] = {
            "input_ids": [row["input_ids"] + [0] * (longest - len(row["input_ids"])) for row in rows],
            "attention_mask": [[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in rows],
        }
        if isinstance(rows[0]["labels"], list):
            batch["labels"] = [row["labels"] + [-100] * (longest - len(row["labels"])) for row in rows]
        else:
            batch["labels"] = [row["labels"] for row in rows]
        return {key: torch.tensor(value) for key, value in batch.items()}


class Clock(TrainerCallback):
    """Time of each step, from its first micro-batch to the optimizer's step."""

    def __init__(self) -> None:
        self.first_step: float | None = None
        self.ends: list[float] = []

    def on_step_end(self, *_args: Any, **_kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())
        self.first_step = self.first_step or self.ends[0] - STARTED


def build(cell: Cell, checkpoint: str) -> Any:
    options: dict[str, Any] = {"dtype": getattr(torch, cell.dtype)}
    if cell.method == "qlora":
        from transformers import BitsAndBytesConfig

        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, cell.dtype),
        )  # fmt: skip
    if cell.task == "causal_lm":
        model = AutoModelForCausalLM.from_pretrained(checkpoint, **options)
    else:
        model = AutoModelForSequenceClassification.from_pretrained(checkpoint, num_labels=5, **options)
    if cell.method == "qlora":
        model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=cell.checkpointing)
    if cell.method == "bitfit":  # peft has no BitFit: the few lines that people write
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.endswith("bias") or name.startswith("classifier"))
        return model
    return peft.get_peft_model(model, adapter_config(cell))


def main() -> None:
    cell, checkpoint, rows_file = Cell(**json.loads(sys.argv[1])), sys.argv[2], Path(sys.argv[3])
    rows = read_rows(rows_file)[: cell.steps * cell.batch_size]
    torch.manual_seed(0)
    model = build(cell, checkpoint)
    clock = Clock()
    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            scratch,
            max_steps=cell.steps,
            per_device_train_batch_size=cell.batch_size,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            seed=0,
            use_cpu=not torch.cuda.is_available(),
            bf16=cell.dtype == "bfloat16",
            gradient_checkpointing=cell.checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False} if cell.checkpointing else None,
            train_sampling_strategy="group_by_length" if cell.tuned else "sequential",
            disable_tqdm=True,
            remove_unused_columns=False,
        )
        trainer = Trainer(model, arguments, train_dataset=rows, data_collator=Collator(), callbacks=[clock])
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    seconds = [after - before for before, after in zip(clock.ends, clock.ends[1:], strict=False)]
    print(
        "RESULT "
        + json.dumps(
            {
                "losses": losses,
                "step_seconds": seconds,
                "first_step_seconds": clock.first_step,
                "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                "peak_device_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
            }
        )
    )


if __name__ == "__main__":
    main()
