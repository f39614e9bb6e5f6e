"""LoRA on a tiny model after it started from training rows (EVA): what its tests share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from peftcli.attachments import input_components
from peftcli.methods.lora import LoraParams
from peftcli.protocol.apply_method import apply_method
from peftcli.protocol.attachment import Attachment
from peftcli.recipe.method_params import MethodParams
from peftcli.tasks.training_rows import TrainingRows
from tests.methods.harness import batch_for, frozen

TARGETS = ["q_proj", "v_proj", "up_proj"]


def batches_for(family: str, count: int = 6) -> list[dict[str, Tensor]]:
    """Return batches of random rows."""
    model = frozen(family)[0]
    return [batch_for(model, rows=8, seed=seed) for seed in range(count)]


def started(
    family: str, batches: list[dict[str, Tensor]], params: MethodParams | None = None, tau: float = 0.99, **options: Any
) -> tuple[Attachment, TrainingRows]:
    """Return LoRA after its start with EVA, and the rows with their notes.

    Args:
        params: in place of LoRA with `options`.
        tau: HF peft's threshold; ours has no option for it.
    """
    model, anatomy = frozen(family)
    torch.manual_seed(7)
    attachment = apply_method(model, anatomy, params or LoraParams(init_lora_weights="eva", **{"r": 4, **options}))
    attachment.initialise(model)
    rows = TrainingRows(lambda: iter(batches))
    attachment.enable(False)
    before, input_components.THRESHOLD = input_components.THRESHOLD, tau
    try:
        with torch.no_grad():
            attachment.start_from_rows(model.eval(), rows)
    finally:
        input_components.THRESHOLD = before
    attachment.enable()
    return attachment, rows
