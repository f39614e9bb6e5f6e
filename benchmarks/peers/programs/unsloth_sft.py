"""unsloth on its CPU path, as its documentation shows it. unsloth_sft.py MODEL ROWS DTYPE OUT"""

from __future__ import annotations

from unsloth import FastLanguageModel  # isort: skip - before the libraries that it patches

import torch
from datasets import load_dataset
from shared_settings import LONGEST, LORA, TRAINING, arguments
from trl import SFTConfig, SFTTrainer


def main() -> None:
    """Train."""
    checkpoint, rows, dtype, out, _ = arguments()
    base, tokenizer = FastLanguageModel.from_pretrained(
        checkpoint, load_in_4bit=False, max_seq_length=LONGEST, dtype=getattr(torch, dtype)
    )
    SFTTrainer(
        model=FastLanguageModel.get_peft_model(base, **LORA, use_gradient_checkpointing=False),
        processing_class=tokenizer,
        args=SFTConfig(out, **TRAINING, max_length=LONGEST, bf16=False, fp16=False, gradient_checkpointing=False),
        train_dataset=load_dataset("json", data_files=rows, split="train"),
    ).train()


if __name__ == "__main__":
    main()
