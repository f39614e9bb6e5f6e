"""The other side of preference tuning: TRL's DPOTrainer at its fastest setting. Prints one line of JSON.

python benchmarks/trl_side.py '{"task": "preference", ...}' CHECKPOINT ROWS INITIAL

Its fastest setting is a reference computed before training and no recomputed activations (its default recomputes them).
`padding_free` is not among them: TRL 1.16 warns that it has switched it off, and pads.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from baseline import Clock, build
from cells import LEARNING_RATE, PACK_LENGTH, Cell, parse
from datasets import Dataset
from material import read_rows
from transformers import AutoTokenizer
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference


class Counting(DataCollatorForPreference):
    """TRL's collator; remembers how many tokens each batch of training held."""

    tokens: list[int] = []  # noqa: RUF012 - a dataclass of TRL's: a field would be an argument

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return one batch."""
        made = super().torch_call(examples)
        if "ref_chosen_logps" in made:  # batches that the reference is computed on have none yet
            self.tokens.append(int(made["attention_mask"].sum()))
        return made


def arguments(cell: Cell, scratch: str) -> DPOConfig:
    """Return TRL's arguments: its defaults, but for what both sides share and what makes it faster."""
    return DPOConfig(
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
        train_sampling_strategy="sequential",
        disable_tqdm=True,
        precompute_ref_log_probs=True,
        max_length=PACK_LENGTH,
        dataset_num_proc=None,
    )


def main() -> None:
    """Train, and print what was measured."""
    cell, (checkpoint, rows_file, initial) = parse(sys.argv[1]), sys.argv[2:5]
    rows = read_rows(Path(rows_file))[: cell.steps * cell.batch_size]
    torch.manual_seed(0)
    model = build(replace(cell, task="causal_lm"), checkpoint, initial)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    collator, clock = Counting(pad_token_id=tokenizer.pad_token_id, max_length=PACK_LENGTH), Clock()
    with tempfile.TemporaryDirectory() as scratch:
        trainer = DPOTrainer(
            model,
            args=arguments(cell, scratch),
            data_collator=collator,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[clock],
        )
        trainer.train()
    answers = sum(len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in trainer.train_dataset)
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    result = {
        "losses": [entry["loss"] for entry in history],
        "norms": [entry["grad_norm"] for entry in history],
        "step_ends": clock.ends,
        "step_tokens": collator.tokens[: cell.steps],
        "supervised_share": answers / sum(collator.tokens[: cell.steps]),
        "compute": cell.dtype,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "peak_device_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
    }
    print("RESULT " + json.dumps(result))


if __name__ == "__main__":
    main()
