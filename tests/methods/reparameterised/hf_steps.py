"""HF peft beside an attachment: the same tensors, the same logits, the same training steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from peftcli.adapters.format import describe
from peftcli.adapters.hf.hf_table import FORMATS
from peftcli.models.load.identity import BaseIdentity
from peftcli.models.read_anatomy import read_anatomy
from peftcli.protocol.attachment import Attachment
from peftcli.recipe.method_params import MethodParams
from tests.tiny import tiny_model

IDENTITY = BaseIdentity("tiny", None, "sha256:0", None, "float32", "any", {})
STEPS = 10
WIDE = 0.1
"""Of the tiny models' random weights: at their usual 0.02 ten steps of some methods learn nothing."""
OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.05),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=3e-3, weight_decay=0.01),
}


def twin(attachment: Attachment, params: MethodParams, family: str, config: Any) -> nn.Module:
    """Return HF peft's model with an attachment's tensors, from the files that this project writes for it.

    Args:
        config: HF peft's own, so that the two are compared and not one with itself.
    """
    from peft import get_peft_model, set_peft_model_state_dict

    other = get_peft_model(tiny_model(family, initializer_range=WIDE), config)
    meta = describe(attachment, read_anatomy(attachment.model), task="causal_lm", base=IDENTITY)
    state = {key: value.clone() for key, value in attachment.state_dict().items()}
    found = set_peft_model_state_dict(other, FORMATS[params.name].to_file(state, params, meta))
    assert not found.unexpected_keys
    assert not [key for key in found.missing_keys if f".{other.base_model.prefix}" in key]
    return other


def losses_of(model: nn.Module, batch: dict[str, Any], optimizer: str) -> list[float]:
    """Train a model's trainable parameters on one batch; return the loss before each step and after the last."""
    steps = OPTIMIZERS[optimizer]([parameter for parameter in model.parameters() if parameter.requires_grad])
    model.train()
    losses = []
    for _ in range(STEPS):
        loss = model(**batch).loss
        losses.append(loss.item())
        loss.backward()
        steps.step()
        steps.zero_grad(set_to_none=True)
    model.eval()
    with torch.no_grad():
        return [*losses, model(**batch).loss.item()]


def own_losses(attachment: Attachment, batch: dict[str, Any], optimizer: str) -> list[float]:
    """Return the same of an attachment, trained as the loop does."""
    steps = OPTIMIZERS[optimizer](attachment.trainable_parameters().values())
    attachment.model.train()
    losses = []
    for step in range(1, STEPS + 1):
        loss = attachment.model(**attachment.prepare_inputs(batch)).loss
        losses.append(loss.item())
        loss.backward()
        steps.step()
        attachment.after_optimizer_step(step, STEPS)
        steps.zero_grad(set_to_none=True)
    attachment.model.eval()
    with torch.no_grad():
        return [*losses, attachment.model(**attachment.prepare_inputs(batch)).loss.item()]
