"""The other side of preference tuning: TRL's DPOTrainer at its fastest setting. Prints one line of JSON.

python benchmarks/trl_side.py '{"task": "preference", ...}' CHECKPOINT ROWS INITIAL

Its fastest setting is a reference computed before training and no recomputed activations (its default recomputes them).
`padding_free` is not among them: TRL 1.16 warns that it has switched it off, and pads.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from baseline import Clock, build, print_result, shared_arguments
from cells import PACK_LENGTH, Cell, parse
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
    faster = {"precompute_ref_log_probs": True, "max_length": PACK_LENGTH, "dataset_num_proc": None}
    return DPOConfig(scratch, **shared_arguments(cell), **faster)


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
    step_tokens = collator.tokens[: cell.steps]
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    print_result(cell, history, clock, step_tokens, answers / sum(step_tokens))


if __name__ == "__main__":
    main()
