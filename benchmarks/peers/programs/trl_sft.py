"""trl's SFTTrainer. trl_sft.py MODEL ROWS DTYPE OUT [padding_free|packing]"""

from __future__ import annotations

from typing import Any

from datasets import load_dataset
from peft import LoraConfig
from shared_settings import LONGEST, LORA, TRAINING, arguments
from trl import SFTConfig, SFTTrainer

VARIANTS: dict[str, dict[str, Any]] = {
    "": {"max_length": LONGEST},
    "padding_free": {"padding_free": True, "max_length": None},  # trl cuts nothing then; all rows are shorter
    # about eight rows to a pack, and one pack a step
    "packing": {"packing": True, "packing_strategy": "bfd", "max_length": 2048, "per_device_train_batch_size": 1},
}


def main() -> None:
    """Train."""
    checkpoint, rows, dtype, out, variant = arguments()
    loading = {"model_init_kwargs": {"dtype": dtype}, "bf16": False, "fp16": False, "gradient_checkpointing": False}
    SFTTrainer(
        model=checkpoint,
        args=SFTConfig(out, **{**TRAINING, **loading, **VARIANTS[variant]}),
        train_dataset=load_dataset("json", data_files=rows, split="train"),
        peft_config=LoraConfig(**LORA, task_type="CAUSAL_LM"),
    ).train()


if __name__ == "__main__":
    main()
