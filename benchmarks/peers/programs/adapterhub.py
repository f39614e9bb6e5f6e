"""AdapterHub's library with its AdapterTrainer. adapterhub.py MODEL ROWS DTYPE OUT CONFIGURATION"""

from __future__ import annotations

import adapters
import torch
from shared_settings import TRAINING, arguments, read
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, TrainingArguments

CLASSES = 5


def main() -> None:
    """Train a default configuration of the library."""
    checkpoint, rows, dtype, out, configuration = arguments()
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    encoded = [{**tokenizer(r["text"], truncation=True, max_length=64), "labels": r["label"]} for r in read(rows)]
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint, num_labels=CLASSES)
    adapters.init(model)
    model.add_adapter("measured", config=getattr(adapters, configuration)())
    model.train_adapter("measured")
    model.to(getattr(torch, dtype))
    settings = TrainingArguments(out, **TRAINING)
    collator = DataCollatorWithPadding(tokenizer)
    adapters.AdapterTrainer(model=model, args=settings, train_dataset=encoded, data_collator=collator).train()


if __name__ == "__main__":
    main()
