"""What every program here trains with, and the rows' text; standard library only, for any peer's environment."""

from __future__ import annotations

import json
import sys
from typing import Any

SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
"""What the model's own chat template puts first."""
LORA: dict[str, Any] = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}
TRAINING: dict[str, Any] = {
    "per_device_train_batch_size": 8, "num_train_epochs": 1, "learning_rate": 1e-3, "logging_steps": 1, "seed": 0,
    "save_strategy": "no", "report_to": [], "use_cpu": True, "disable_tqdm": True,
}  # fmt: skip
"""Arguments of transformers' Trainer and of what is built on it; the rest is each library's default."""
LONGEST = 512


def arguments() -> tuple[str, str, str, str, str]:
    """Return a program's command line: MODEL ROWS DTYPE OUT [VARIANT]."""
    model, rows, dtype, out, *variant = sys.argv[1:]
    return model, rows, dtype, out, variant[0] if variant else ""


def read(rows: str) -> list[dict[str, Any]]:
    """Return the rows of a file of JSON lines."""
    with open(rows, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def prompt(question: str) -> str:
    """Return what precedes the answer, as the model's chat template renders it."""
    return f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


def reply(answer: str) -> str:
    """Return what is learnt."""
    return f"{answer}<|im_end|>\n"
