"""A LoRA whose tensors moved from where they began, saved in HF peft's layout, and the logits with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from peftcli.adapters.format import SavedAdapter, describe
from peftcli.adapters.saving import save_adapter
from peftcli.methods.lora import LoraParams
from peftcli.models.load.identity import BaseIdentity
from peftcli.models.read_anatomy import read_anatomy
from peftcli.protocol.apply_method import apply_method

IDS = torch.tensor([[5, 6, 7, 8, 9, 2, 17, 33], [11, 12, 13, 14, 2, 2, 90, 91]])


def logits_of(model: nn.Module) -> Tensor:
    """Return the logits of two rows of ids."""
    with torch.no_grad():
        logits: Tensor = model(input_ids=IDS).logits
    return logits


def save_moved(directory: Path, model: nn.Module, family: str, options: dict[str, Any]) -> tuple[SavedAdapter, Tensor]:
    """Save an adapter that moved; return it, and the logits with it."""
    params = LoraParams(**{"r": 2, "lora_alpha": 6, **options})
    anatomy = read_anatomy(model)
    attachment = apply_method(model, anatomy, params)
    attachment.initialise(model)
    with torch.no_grad():
        for parameter in attachment.trainable_parameters().values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    identity = BaseIdentity("tiny", None, "sha256:0", None, "float32", family, {})
    meta = describe(attachment, anatomy, task="causal_lm", base=identity)
    state = attachment.state_dict()
    save_adapter(directory, attachment_state=state, params=params, meta=meta)
    return SavedAdapter(params, state, meta), logits_of(model.eval())


def logits_with(saved: SavedAdapter, model: nn.Module) -> Tensor:
    """Return the logits of a fresh model with a saved adapter."""
    attachment = apply_method(model, read_anatomy(model), saved.params)
    attachment.load_state_dict(saved.state)
    return logits_of(model.eval())
