"""The other side: HF peft + transformers' Trainer, as its documentation shows it. Prints one line of JSON.

python benchmarks/baseline.py '{"task": "causal_lm", ...}' CHECKPOINT ROWS INITIAL
"""

from __future__ import annotations

import functools
import json
import re
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import peft
import torch
from cells import ADALORA, CLASSES, LEARNING_RATE, LORA, VIRTUAL_TOKENS, Cell, parse
from material import read_rows
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

OWN_FORMULATIONS = ("bitfit", "adapter", "compacter")  # HF peft has none of them


def adapter_config(cell: Cell) -> Any:
    """Return HF peft's configuration of a method."""
    task = {"causal_lm": "CAUSAL_LM", "sequence_classification": "SEQ_CLS"}[cell.task]
    targets = ["q_proj", "v_proj"] if cell.task == "causal_lm" else ["query", "value"]
    if cell.method == "prefix_tuning":
        return peft.PrefixTuningConfig(task_type=task, num_virtual_tokens=VIRTUAL_TOKENS)
    if cell.method == "adalora":
        return peft.AdaLoraConfig(task_type=task, target_modules=targets, total_step=cell.steps, **ADALORA)
    chosen = "all-linear" if cell.method == "qlora" else targets
    return peft.LoraConfig(task_type=task, target_modules=chosen, **LORA)


def build(cell: Cell, checkpoint: str, initial: str) -> Any:
    """Return the model with its method, at the initial values."""
    options: dict[str, Any] = {"dtype": getattr(torch, cell.baseline_dtype)}
    if cell.method == "qlora":
        from transformers import BitsAndBytesConfig

        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=options["dtype"],
        )  # fmt: skip
    if cell.task == "causal_lm":
        model = AutoModelForCausalLM.from_pretrained(checkpoint, **options)
    else:
        model = AutoModelForSequenceClassification.from_pretrained(checkpoint, num_labels=CLASSES, **options)
    values = load_file(f"{initial}/adapter_model.safetensors")
    if cell.method in OWN_FORMULATIONS:
        from formulations import attach, load_values

        load_values(attach(cell.method, model), values)
        return model
    if cell.method == "qlora":
        model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=cell.checkpointing)
    if cell.method == "prefix_tuning" and cell.task == "sequence_classification":
        values = flat_prefix(values)
    model = peft.get_peft_model(model, adapter_config(cell))
    unknown = set(peft.set_peft_model_state_dict(model, values).unexpected_keys) - {"prompt_embeddings"}  # it is loaded
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    if unknown or trained != sum(value.numel() for value in values.values()):
        raise SystemExit(f"the initial values do not fit: {trained} trained numbers, {unknown}")
    return model


def flat_prefix(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return an encoder's prefix as HF peft holds it: (T, 2 layers * width), keys and values of each layer in turn.

    This project saves it in a layout of its own, since HF peft would count the encoder's positions differently.
    """
    layers = {int(re.findall(r"\d+", name)[0]): name.rpartition(".")[0] for name in values if ".prefix." in name}
    slots = [values[f"{layers[number]}.{kind}"][0] for number in sorted(layers) for kind in ("key", "value")]
    prompt = torch.stack([slot.transpose(0, 1).flatten(1) for slot in slots], dim=1).flatten(1)
    heads = {f"base_model.{name}": value for name, value in values.items() if ".prefix." not in name}
    return {"prompt_embeddings": prompt, **heads}


class Collator:
    """Pad to the longest row, on the right, labels with -100; remembers how many tokens each batch held.

    Args:
        shifted: hand the model positions from -VIRTUAL_TOKENS. HF peft adds the prefix's length to an encoder's, given
            or not, as if the prefix were text; this project does not, so that both sides count from 0.
    """

    def __init__(self, shifted: bool) -> None:
        self.shifted = shifted
        self.tokens: list[int] = []

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return one batch."""
        lengths = [len(row["input_ids"]) for row in rows]
        longest = max(lengths)
        self.tokens.append(sum(lengths))
        batch: dict[str, Any] = {
            "input_ids": [row["input_ids"] + [0] * (longest - len(row["input_ids"])) for row in rows],
            "attention_mask": [[1] * length + [0] * (longest - length) for length in lengths],
        }
        if isinstance(rows[0]["labels"], list):
            batch["labels"] = [row["labels"] + [-100] * (longest - len(row["labels"])) for row in rows]
        else:
            batch["labels"] = [row["labels"] for row in rows]
        if self.shifted:
            batch["position_ids"] = [list(range(-VIRTUAL_TOKENS, longest - VIRTUAL_TOKENS))] * len(rows)
        return {key: torch.tensor(value) for key, value in batch.items()}


class Clock(TrainerCallback):
    """The time at which each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_args: Any, **_kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.time())


class Allocation(TrainerCallback):
    """AdaLoRA's ranks, which a training loop has to ask for, after the optimizer's step and before its zeros."""

    def on_optimizer_step(self, _args: Any, state: Any, _control: Any, model: Any = None, **_kwargs: Any) -> None:
        model.base_model.update_and_allocate(state.global_step + 1)


def plain_losses(model: Any) -> list[torch.Tensor]:
    """Return a list that fills with AdaLoRA's losses before its own term is added to them."""
    kept: list[torch.Tensor] = []
    inner = model.get_base_model()
    forward = inner.forward

    @functools.wraps(forward)  # the Trainer looks at its signature; AdaLoRA calls it directly, past every hook
    def keeping(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        kept.append(output.loss.detach().clone())
        return output

    inner.forward = keeping
    return kept


def shared_arguments(cell: Cell) -> dict[str, Any]:
    """Return the arguments of transformers' Trainer, and of TRL's, that hold both sides to the same training."""
    return {
        "max_steps": cell.steps,
        "per_device_train_batch_size": cell.batch_size,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "seed": 0,
        "use_cpu": not torch.cuda.is_available(),
        "bf16": cell.baseline_dtype == "bfloat16",
        "gradient_checkpointing": cell.checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False} if cell.checkpointing else None,
        "train_sampling_strategy": "group_by_length" if cell.tuned else "sequential",
        "disable_tqdm": True,
    }


def print_result(
    cell: Cell, history: list[dict[str, Any]], clock: Clock, step_tokens: list[int], supervised_share: float
) -> None:
    """Print what was measured, for `side_by_side.run_side`.

    Args:
        history: the Trainer's log of each step.
        step_tokens: of each step, padding left out.
    """
    result = {
        "losses": [entry["loss"] for entry in history],
        "norms": [entry["grad_norm"] for entry in history],
        "step_ends": clock.ends,
        "step_tokens": step_tokens,
        "supervised_share": supervised_share,
        "compute": cell.baseline_dtype,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "peak_device_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
    }
    print("RESULT " + json.dumps(result))


def main() -> None:
    """Train, and print what was measured."""
    cell, (checkpoint, rows_file, initial) = parse(sys.argv[1]), sys.argv[2:5]
    rows = read_rows(Path(rows_file))[: cell.steps * cell.batch_size]
    torch.manual_seed(0)
    model = build(cell, checkpoint, initial)
    adalora = cell.method == "adalora"
    losses = plain_losses(model) if adalora else []
    clock, collator = Clock(), Collator(cell.method == "prefix_tuning" and cell.task != "causal_lm")
    with tempfile.TemporaryDirectory() as scratch:
        callbacks = [clock, *([Allocation()] if adalora else [])]
        settings = TrainingArguments(
            scratch, torch_compile=cell.compiled, remove_unused_columns=False, **shared_arguments(cell)
        )
        trainer = Trainer(model, settings, train_dataset=rows, data_collator=collator, callbacks=callbacks)
        trainer.train()
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    if losses:  # without the method's own term
        history = [{**entry, "loss": float(loss)} for entry, loss in zip(history, losses, strict=True)]
    tokens = sum(len(row["input_ids"]) for row in rows)
    supervised = sum(sum(t != -100 for t in r["labels"]) if isinstance(r["labels"], list) else 1 for r in rows)
    print_result(cell, history, clock, collator.tokens[: cell.steps], supervised / tokens)


if __name__ == "__main__":
    main()
