"""What the matrices train with, and their holes. A hole is data, and carries its reason."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from peftcli.tasks.task_table import TASKS
from tests.tiny import DECODERS, ENCODERS, FAMILIES, SEQ2SEQ

LORA_RATE = 1e-2
"""Of LoRA on all linears, for every task."""

CLASS_HOLES: dict[tuple[str, str], str] = {
    **{(family, "AutoModelForCausalLM"): "an encoder's attention sees later tokens" for family in ENCODERS},
    **{(family, "AutoModelForCausalLM"): "an encoder-decoder writes its text from an input" for family in SEQ2SEQ},
    **{(family, "AutoModelForSeq2SeqLM"): "it has one stack" for family in [*ENCODERS, *DECODERS]},
    **{
        (family, "AutoModelForTokenClassification"): "transformers has no such class for it"
        for family in ("opt", "gemma3_text", "olmo2", "granite", "bart", "mbart", "pegasus")
    },
    **{
        (family, "AutoModelForSequenceClassification"): "transformers has no such class for it"
        for family in ("granite", "pegasus")
    },
}
"""Families and the transformers classes that they lack, or have without use."""
TASK_HOLES = {
    (family, name): reason
    for (family, auto_class), reason in CLASS_HOLES.items()
    for name, task in TASKS.items()
    if task.info.auto_class == auto_class
}
"""Families of text and the tasks that they do not do; a later transformers may have filled a hole."""

NOT_OF_TEXT = {"whisper": "it reads sounds", "vit": "it reads images"}
"""Families with roles and counts only: the tasks here are of text. They train by their own loss below."""


@dataclass(frozen=True)
class Case:
    """How a method trains in the matrix.

    Args:
        rate: learning rate, of the size that random models of width 32 take.
        target: share of the first loss that must be reached.
        params: hyper-parameters that are not the method's defaults, where those are made for real widths.
    """

    rate: float
    target: float = 0.5
    params: dict[str, Any] = field(default_factory=dict)


A_TENTH_LESS = 0.9

CASES: dict[str, Case] = {
    "lora": Case(1e-2, params={"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}),
    "qlora": Case(2e-2),
    "adalora": Case(3e-2),
    "vera": Case(6e-2, A_TENTH_LESS),
    "ia3": Case(6e-2, A_TENTH_LESS),
    "oft": Case(3e-2, A_TENTH_LESS, params={"oft_block_size": 8, "target_modules": "all-linear"}),
    "miss": Case(1e-2, params={"r": 8, "target_modules": "all-linear"}),
    "hira": Case(3e-2, A_TENTH_LESS, params={"r": 8, "target_modules": "all-linear"}),
    "lokr": Case(3e-2, A_TENTH_LESS, params={"target_modules": "all-linear"}),
    "shira": Case(1e-2, A_TENTH_LESS, params={"r": 4, "target_modules": "all-linear"}),
    "prefix_tuning": Case(5e-3),
    "prompt_tuning": Case(1e-1, A_TENTH_LESS),
    "adapter": Case(4e-2),
    "parallel_adapter": Case(2e-2, params={"reduction_factor": 4}),  # of width 2, relu dies
    "compacter": Case(4e-2),
    "loreft": Case(3e-2, A_TENTH_LESS),
    "bitfit": Case(3e-2, A_TENTH_LESS),
    "ln_tuning": Case(3e-2, A_TENTH_LESS),
    "mam": Case(5e-3),
    "unipelt": Case(1e-2),
    "compose": Case(
        1e-2,
        params={
            "parts": [{"name": "lora", "target_modules": ["attn"]}, {"name": "parallel_adapter", "reduction_factor": 4}]
        },
    ),
    "full": Case(5e-3),
    "freeze": Case(5e-3),
}

ROUTES = {
    "bert": "interface",
    "t5": "interface",
    "gpt2": "interface",
    "bloom": "cache_view",
    "deberta-v2": "padded_rows",
}
"""Families that stand for every way in which prefixes reach an attention, and for every kind of stack."""

CHECKPOINTED = [family for family in FAMILIES if family != "albert"]
