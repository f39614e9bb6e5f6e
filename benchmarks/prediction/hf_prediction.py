"""The other side: HF peft with transformers as its documentation shows it, on rows of token ids.

hf_prediction.py WORK CHECKPOINT ADAPTER ROWS OUT DTYPE BATCH NEW_TOKENS; WORK is classes, questions, loss or texts.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

CLASSES = 5
CLASSIFIES = {"classes", "questions"}
"""Works in which each row gets a class."""


def trainer(model: Any, collator: Any, batch: int, dtype: str, **options: Any) -> Trainer:
    """Return a Trainer that only evaluates."""
    arguments = TrainingArguments(
        tempfile.mkdtemp(), per_device_eval_batch_size=batch, report_to=[], use_cpu=True, disable_tqdm=True,
        remove_unused_columns=False, bf16_full_eval=dtype == "bfloat16", **options,
    )  # fmt: skip
    return Trainer(model, arguments, data_collator=collator)


def classes(model: Any, tokenizer: Any, rows: list[dict[str, Any]], batch: int, dtype: str) -> list[dict[str, Any]]:
    """Return each row's class and the mean loss, by `Trainer.predict`."""
    found = trainer(model, DataCollatorWithPadding(tokenizer), batch, dtype).predict(rows)
    assert found.metrics is not None
    return [{"prediction": str(number)} for number in np.argmax(found.predictions, -1)] + [
        {"eval_loss": found.metrics["test_loss"]}
    ]


def loss(model: Any, tokenizer: Any, rows: list[dict[str, Any]], batch: int, dtype: str) -> list[dict[str, Any]]:
    """Return the mean loss over the learnt tokens, by `Trainer.evaluate`.

    The Trainer's own `eval_loss` is a mean of the batches' means, in which a token of a short batch counts more.
    """
    one = trainer(model, DataCollatorForSeq2Seq(tokenizer), batch, dtype, prediction_loss_only=True)
    total = torch.zeros((), dtype=torch.float64)
    learnt = 0

    def mean_of_batch(outputs: Any, labels: torch.Tensor, **_: Any) -> torch.Tensor:
        nonlocal learnt
        logits, targets = outputs.logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten()
        summed = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
        count = int((targets != -100).sum())
        total.add_(summed)
        learnt += count
        return summed / count

    one.compute_loss_func = mean_of_batch
    one.evaluate(rows)
    return [{"eval_loss": float(total) / learnt}]


def texts(model: Any, tokenizer: Any, prompts: list[list[int]], batch: int, new_tokens: int) -> list[dict[str, Any]]:
    """Return each row's greedy continuation, by `generate` on left-padded batches in the order of the file."""
    tokenizer.padding_side = "left"
    out = []
    for start in range(0, len(prompts), batch):
        inputs = tokenizer.pad({"input_ids": prompts[start : start + batch]}, return_tensors="pt")
        with torch.inference_mode():
            whole = model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False)
        for row in whole[:, inputs["input_ids"].shape[1] :].tolist():
            end = row.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in row else len(row)
            text = tokenizer.decode(row[:end], skip_special_tokens=True)
            out.append({"prediction": text, "scores": {"tokens": end}})
    return out


def main() -> None:
    """Predict, and write a line of JSON for each row."""
    work, checkpoint, adapter, file, out, dtype, batch, new_tokens = sys.argv[1:]
    lines = Path(file).read_text(encoding="utf-8").splitlines()
    rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    options: dict[str, Any] = {"dtype": getattr(torch, dtype)}
    if work in CLASSIFIES:
        base = AutoModelForSequenceClassification.from_pretrained(checkpoint, num_labels=CLASSES, **options)
    else:
        base = AutoModelForCausalLM.from_pretrained(checkpoint, **options)
    model = PeftModel.from_pretrained(base, adapter).eval()
    if work == "texts":
        found = texts(model, tokenizer, [row["input_ids"] for row in rows], int(batch), int(new_tokens))
    else:
        found = (classes if work in CLASSIFIES else loss)(model, tokenizer, rows, int(batch), dtype)
    Path(out).write_text("".join(json.dumps(line) + "\n" for line in found), encoding="utf-8")


if __name__ == "__main__":
    main()
