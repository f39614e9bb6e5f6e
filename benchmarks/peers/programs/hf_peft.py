"""HF peft and transformers' Trainer, as they come. hf_peft.py MODEL ROWS DTYPE OUT [grouped]"""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from shared_settings import LONGEST, LORA, TRAINING, arguments, prompt, read, reply
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments


def encoded(tokenizer: Any, row: dict[str, str]) -> dict[str, list[int]]:
    """Return a row's token ids; only the answer is learnt."""
    asked, answered = (
        tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in (prompt(row["prompt"]), reply(row["completion"]))
    )
    ids = (asked + answered)[:LONGEST]
    labels = ([-100] * len(asked) + answered)[:LONGEST]
    return {"input_ids": ids, "labels": labels, "attention_mask": [1] * len(ids)}


def main() -> None:
    """Train."""
    checkpoint, rows, dtype, out, variant = arguments()
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    base = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=getattr(torch, dtype))
    order = {"train_sampling_strategy": "group_by_length"} if variant == "grouped" else {}
    Trainer(
        model=get_peft_model(base, LoraConfig(**LORA, task_type="CAUSAL_LM")),
        args=TrainingArguments(out, **TRAINING, **order),
        train_dataset=[encoded(tokenizer, row) for row in read(rows)],
        data_collator=DataCollatorForSeq2Seq(tokenizer, padding=True),
    ).train()


if __name__ == "__main__":
    main()
