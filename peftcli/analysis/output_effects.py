"""How far the outputs of a tiny model change where they should not: with padding, and with a cache."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from peftcli.analysis.contract_models import ContractModel, batch_of

Outputs = Callable[[dict[str, Tensor]], Tensor]
_NEW_TOKENS = 4


def padding_effect(kind: ContractModel, outputs: Outputs, more: int = 0) -> float:
    """Return how far a row's outputs differ when it is padded beside a longer one, relative to the largest.

    Args:
        outputs: returns the logits of a batch, (rows, ...).
        more: tokens that each row is longer.
    """
    batch = batch_of(kind, more=more)
    together = outputs(batch)[2]
    length = int(batch["attention_mask"][2].sum())
    alone = {key: value[2:] for key, value in batch.items()}
    alone |= {key: alone[key][:, :length] for key in ("input_ids", "attention_mask")}
    if kind.rows in ("text", "tagged"):
        alone["labels"] = alone["labels"][:, :length]
        together = together[:length]
    return difference(together, outputs(alone)[0])


def cache_effect(
    kind: ContractModel, model: nn.Module, prepare: Callable[..., dict[str, Any]] | None = None, *, more: int = 0
) -> float:
    """Return how far the logits of generated tokens differ with and without a cache, relative to the largest.

    Args:
        prepare: the attachment's `prepare_inputs`; None for a bare model.
        more: tokens that each row is longer.
    """
    host: Any = model
    whole = batch_of(kind, padded=False, more=more)
    batch = {key: whole[key] for key in ("input_ids", "attention_mask")}
    scores = []
    for cached in (True, False):
        inputs = batch if prepare is None else prepare(batch, generate=True)
        with torch.no_grad():
            out = host.generate(
                **inputs,
                do_sample=False,
                num_beams=1,
                max_new_tokens=_NEW_TOKENS,
                min_new_tokens=_NEW_TOKENS,
                use_cache=cached,
                output_logits=True,
                return_dict_in_generate=True,
            )
        scores.append(torch.stack(out.logits, 1))
    return difference(*scores)


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference, relative to the largest value; infinite where shapes differ or one is NaN."""
    if ours.shape != theirs.shape:
        return float("inf")
    off = float((ours - theirs).abs().max() / ours.abs().max().clamp_min(1e-9))
    return float("inf") if math.isnan(off) else off
