"""Whether a model sees later tokens, tried on it: names and settings such as `use_cache` do not tell."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from peftcli.layers.seeded import seeded

_VOCABULARY = 64
_LARGEST = 60_000_000
"""Parameters of the copy with one block beyond which the trial would take seconds and gigabytes."""


def sees_later_tokens(model: PreTrainedModel) -> bool | None:
    """Return whether the first token's output depends on the last token; None where that cannot be tried.

    The trial runs on a copy of the model with one block, a small vocabulary and random weights, on the CPU.

    Args:
        model: with one stack of blocks, on any device, meta included; left as it is.
    """
    try:
        config = _small(model.config)
        with torch.device("meta"):
            size = sum(parameter.numel() for parameter in type(model)(config).parameters())
        if size > _LARGEST:
            return None
        with seeded(0), torch.no_grad():
            copy = type(model)(config).float().eval()
            ids = torch.tensor([[5, 6, 7, 8, 9], [5, 6, 7, 8, 10]])
            first = copy(input_ids=ids)[0][:, 0].float()
    except Exception:  # a model's own code refuses small sizes in its own ways: then its modules are asked
        return None
    scale = first.abs().max().clamp(min=1e-6)
    return bool((first[0] - first[1]).abs().max() > 1e-5 * scale) if bool(first.isfinite().all()) else None


def _small(config: PretrainedConfig) -> PretrainedConfig:
    small = type(config).from_dict(config.to_dict())
    small.update(
        {"num_hidden_layers": 1, "vocab_size": _VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    )
    if getattr(small, "layer_types", None):
        small.layer_types = list(small.layer_types)[:1]
    return small


def attention_is_causal(blocks: Iterable[nn.Module]) -> bool | None:
    """Return what the attention modules say of themselves (`is_causal`); None where none says anything."""
    marks = [getattr(module, "is_causal", None) for block in blocks for module in block.modules()]
    said = [mark for mark in marks if isinstance(mark, bool)]
    return any(said) if said else None
